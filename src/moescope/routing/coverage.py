"""Which mixture-of-experts types of the installed transformers can be traced: each is built tiny and tried.

A type counts as supported when its recorded dispatch, recomputed in plain torch, gives what its experts gave, in a padded
batch and in cached generation, and when the trace of a batch is that of its rows one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name

from moescope.capture.encode import Encoded
from moescope.capture.spread import Progress
from moescope.errors import InputError
from moescope.models import LoadedModel, from_model
from moescope.models.architectures import swept
from moescope.models.experts import DispatchRecorder, recording, routed_output
from moescope.models.tiny import FOREIGN, NotBuilt, tiny_module
from moescope.models.writing import can_generate
from moescope.routing.capture import trace_prompts
from moescope.routing.trace import TracedSequence

TOLERANCE = 1e-5
"""largest accepted error of the recomputed output, relative to the layer's largest value"""
_FIELD = re.compile(r"^    (?:\w*num\w*_experts|n_routed_experts|num_experts)\s*:", re.MULTILINE)
_CLASS = re.compile(r"^class \w+Experts\(", re.MULTILINE)
# of the types that one folder of transformers defines, the first that one of these can build, text models before others
_AUTO = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM")
_LENGTHS, _NEW = (6, 3), 3


@dataclass(frozen=True)
class Coverage:
    """What came of tracing one type."""

    model_type: str
    supported: bool
    reason: str
    """why not; empty where supported"""
    layers: tuple[int, ...] = ()
    n_layers: int = 0
    """layers of the tiny model, dense ones counted"""
    n_experts: int = 0
    gating: str = ""
    scores: str = ""
    error: float = float("nan")
    """largest difference between the recomputed and the layer's own routed output, relative to the largest value of it"""
    generates: bool = False


def moe_types() -> list[str]:
    """One type of each family of the installed transformers whose config counts experts or whose code has them."""
    root = Path(transformers.__file__).parent / "models"
    families: dict[str, list[str]] = {}
    for model_type in CONFIG_MAPPING_NAMES:
        families.setdefault(model_type_to_module_name(model_type), []).append(model_type)
    found = []
    for family, types in sorted(families.items()):
        config, code = (root / family / f"{part}_{family}.py" for part in ("configuration", "modeling"))
        if _matches(_FIELD, config) or _matches(_CLASS, code):
            found.append(_representative(types))
    return found


def _matches(pattern: re.Pattern[str], file: Path) -> bool:
    return file.is_file() and pattern.search(file.read_text(encoding="utf-8")) is not None


def _representative(types: list[str]) -> str:
    ordered = sorted(types, key=lambda name: not name.endswith("_text"))
    for auto in _AUTO:
        names = getattr(modeling_auto, f"MODEL_FOR_{auto}_MAPPING_NAMES")
        if known := [name for name in ordered if name in names]:
            return known[0]
    return types[0]


def coverage(types: Sequence[str] | None = None, *, progress: Progress | None = None) -> list[Coverage]:
    """What comes of tracing each type, by default of all that :func:`moe_types` finds (about a minute).

    Raises:
        InputError: a type is not among those.
    """
    known = moe_types()
    return swept(types, known, f"with experts: {', '.join(known)}", check_type, progress)


def check_type(model_type: str) -> Coverage:
    """Build the type tiny and trace it."""
    refused = partial(Coverage, model_type, False)
    try:
        model = from_model(tiny_module(model_type), None, name=model_type)
        try:
            _ = model.batching  # runs it
        except InputError as error:
            return refused(f"no tiny model of it runs: {error}")
        return check_model(model)
    except (InputError, NotBuilt) as error:
        return refused(str(error))
    except FOREIGN as error:
        # a type newer than this table of sizes: one row says so, the other rows are still printed
        return refused(f"no tiny model of it runs: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def check_model(model: LoadedModel) -> Coverage:
    """Trace a model on random tokens and hold the trace against the model.

    Raises:
        InputError: its routing cannot be traced, or the trace is not what the model did.
    """
    rng = np.random.default_rng(0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    encoded = Encoded.from_ids([rng.integers(3, vocabulary, n) for n in _LENGTHS])
    names = [TracedSequence(str(n)) for n in range(len(encoded))]
    new = _NEW if can_generate(model) else 0
    error = 0.0
    for tokens in sorted({0, new}):
        with _checked(model) as errors:
            batch = trace_prompts(model, names, encoded=encoded, max_new_tokens=tokens)
        error = max(error, *errors)
        alone = trace_prompts(model, names[1:], encoded=encoded.rows(1, 2), max_new_tokens=tokens)  # the shorter, padded one
        if not np.array_equal(batch.select([1]).ids, alone.ids):
            raise InputError("a padded batch is routed otherwise than its shorter row alone")
    if not error <= TOLERANCE:
        raise InputError(f"the recomputed output differs from the layer's own by {error:.1e} of its largest value")
    gating = batch.meta["gating"]
    scores = batch.meta["scores"]
    return Coverage(
        model.config.model_type,
        True,
        "",
        batch.layers,
        _depth(model),
        max(batch.n_experts),
        gating if isinstance(gating, str) else "; ".join(sorted(set(gating.values()))),
        scores if isinstance(scores, str) else "; ".join(sorted(set(scores.values()))),
        error,
        bool(new),
    )


def _depth(model: LoadedModel) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


@contextmanager
def _checked(model: LoadedModel) -> Iterator[list[float]]:
    """Collect, at the end, the relative error of each layer's recomputed output over all forward passes inside."""
    errors: list[float] = []
    with recording(model, hidden=True) as recorder:
        outputs: list[list[Tensor]] = [[] for _ in recorder.layers]
        handles = []
        try:
            for layer, seen in zip(recorder.layers, outputs, strict=True):
                handles += layer.rule.watch(layer.module, _append(seen))
            yield errors
        finally:
            for handle in handles:
                handle.remove()
        errors += recompute_errors(recorder, outputs)


def _append(seen: list[Tensor]) -> Callable[[Tensor], None]:
    return lambda output: seen.append(output.detach().clone())


def recompute_errors(recorder: DispatchRecorder, outputs: list[list[Tensor]]) -> list[float]:
    """For each layer the largest difference between ``outputs`` (one (N, D) per forward pass) and what its dispatch gives,
    over the largest value of the outputs."""
    errors = []
    for index, (layer, seen) in enumerate(zip(recorder.layers, outputs, strict=True)):
        pairs = [(own, routed_output(layer, step[index])) for own, step in zip(seen, recorder.steps, strict=True)]
        largest = max(float(own.abs().max()) for own, _ in pairs)
        errors.append(max(float((own - ours).abs().max()) for own, ours in pairs) / max(largest, torch.finfo().tiny))
    return errors
