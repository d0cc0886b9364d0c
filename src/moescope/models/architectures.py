"""Which types of the installed transformers can be read: each is built tiny, and its sites are held against what it computes
(:mod:`moescope.models.probe`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import transformers
from transformers.models.auto import modeling_auto

from moescope.errors import InputError
from moescope.models.batching import SIDES
from moescope.models.load import LoadedModel, from_model
from moescope.models.probe import Misread, Probe
from moescope.models.refused import check_type as refuse
from moescope.models.sites import describe_sites
from moescope.models.tiny import FOREIGN, NotBuilt, tiny_module

_R = TypeVar("_R")
_TABLES = ("MAPPING", "FOR_CAUSAL_LM_MAPPING", "FOR_MASKED_LM_MAPPING", "FOR_IMAGE_TEXT_TO_TEXT_MAPPING")


@dataclass(frozen=True)
class Architecture:
    """What came of reading one type."""

    model_type: str
    read: bool
    reason: str
    """why not; empty where read"""
    sites: str = ""
    """those of the tiny model"""
    stream: str = ""
    """what a layer adds to the stream; several where its layers differ"""
    singly: str = ""
    """with which padding (``"none"``: even without) texts must be run one by one, or which texts"""


def text_types() -> list[str]:
    """Every type that an automatic class for bodies, causal, masked or image-and-text language models makes."""
    found: set[str] = set()
    for table in _TABLES:
        found |= set(getattr(modeling_auto, f"MODEL_{table}_NAMES"))
    return sorted(found)


def architectures(
    types: Sequence[str] | None = None, *, progress: Callable[[int, int], None] | None = None
) -> list[Architecture]:
    """What comes of reading each type, by default of all (two minutes).

    Raises:
        InputError: a type is not among those.
    """
    return swept(types, text_types(), f"of transformers {transformers.__version__}", check_type, progress)


def swept(
    types: Sequence[str] | None,
    known: Sequence[str],
    among: str,
    check: Callable[[str], _R],
    progress: Callable[[int, int], None] | None,
) -> list[_R]:
    """``check`` of each of ``types``, or of all that are known; ``among`` names those in the message.

    Raises:
        InputError: a type is not known.
    """
    for name in types or ():
        if name not in known:
            raise InputError(f"model type {name!r} is not among the {len(known)} {among}")
    found = []
    for name in types or known:
        found.append(check(name))
        if progress is not None:
            progress(len(found), len(types or known))
    return found


def check_type(model_type: str) -> Architecture:
    """Build the type tiny and read it."""
    refused = partial(Architecture, model_type, False)
    try:
        refuse(transformers.CONFIG_MAPPING[model_type]())
        module = tiny_module(model_type)
    except InputError as error:
        return refused(str(error))
    except NotBuilt as error:
        return refused(f"not tried: {error}")
    except FOREIGN as error:
        # a type newer than this table of sizes: one row says so, the other rows are still printed
        what = re.sub(r"'?(/[\w.-]+){2,}'?", "...", " ".join(str(error).split()))  # no paths of this machine
        return refused(f"not tried: no tiny model of it is built: {what[:120]}")
    try:
        model = from_model(module, None, name=model_type)
        _ = model.batching
        return replace(check_model(model), model_type=model_type)
    except InputError as error:
        return refused(str(error))
    except Misread as error:
        return refused(f"misread: {error}")
    except FOREIGN as error:
        return refused(f"misread: {type(error).__name__}: {' '.join(str(error).split())[:120]}")


def check_model(model: LoadedModel) -> Architecture:
    """Hold every site of a model against what it computes on random tokens.

    Raises:
        Misread: a site does not hold what it should; the first that does not.
    """
    if not model.sites():
        return Architecture(model.config.model_type, False, f"its routing can be traced, but {model.structure.unread}")
    probe = Probe(model)
    probe.check_stream()
    probe.check_replacing()
    forms = list(dict.fromkeys(probe.update(layer) for layer in range(model.n_layers)))
    for site in model.sites("mlp_out"):
        probe.check_mlp(site.layer)
    probe.check_batching()
    sides: list[str] = [side for side in SIDES if not model.batching.allows(side)]
    if model.batching.budget is not None:
        sides.append("texts longer than its indexer's budget")
    return Architecture(model.config.model_type, True, "", describe_sites(model.sites()), "; ".join(forms), ", ".join(sides))
