"""What the page says of an expert or a circuit neuron: the card of an atlas, or one made of a few shipped prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from moescope.capture.encode import Encoded, encode
from moescope.errors import InputError
from moescope.report.texts import marked
from moescope.routing.capture import trace_prompts
from moescope.routing.cards import expert_cards, expert_shares, marked_window
from moescope.server.circuits import CircuitReader, CircuitTrace
from moescope.studies.atlas.page import atlas_cards
from moescope.tasks.prompts import Prompt, load_prompts

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.study.result import StudyResult

Cards = dict[str, dict[str, Any]]
"""by the name that an edit has for it, ``2:5`` or ``mlp_act:3/17``"""

_PROMPTS = "routing-80"
_TOP = 6
"""tokens and contexts of a card"""


def example_prompts() -> list[Prompt]:
    """The shipped prompts, 20 of each of four categories."""
    return load_prompts(_PROMPTS)


def cards_of_atlas(model: LoadedModel, result: StudyResult, folder: str) -> Cards:
    """The experts' cards of a saved atlas.

    Raises:
        InputError: not an atlas, or one of another model.
    """
    if result.kind != "atlas":
        raise InputError(f"{folder} holds no atlas (its kind is {result.kind!r}); run moescope atlas", "atlas")
    if result.meta.get("fingerprint") != model.fingerprint:
        made = f"{result.meta.get('model')} ({result.meta.get('fingerprint')})"
        raise InputError(f"{folder} was made for {made}, not for {model.name} ({model.fingerprint})", "atlas")
    beneath = f"From an atlas of {result.meta.get('prompts')} prompts; a label is confirmed on prompts that did not choose it."
    return _experts(result.tables, beneath)


def cards_of_prompts(model: LoadedModel) -> Cards:
    """The experts' cards of one pass over the shipped prompts."""
    trace = trace_prompts(model, example_prompts())
    decode = model.tokenizer.decode
    tables = expert_cards(trace, decode=lambda ids: str(decode(ids)), top=_TOP)
    layer, expert = trace.experts
    tables["experts"] = pd.DataFrame({"layer": layer, "expert": expert, "share": expert_shares(trace)})
    few = f"From {len(trace):,} tokens of {len(trace.sequences)} shipped prompts, which both chose and show this; "
    return _experts(tables, few + "moescope atlas confirms it on others, and --atlas shows that.")


def _experts(tables: dict[str, pd.DataFrame], beneath: str) -> Cards:
    frame = tables["experts"]
    cards = zip(frame["layer"], frame["expert"], atlas_cards(tables), strict=True)
    return {
        f"{layer}:{expert}": {"at": f"{layer}:{expert}", "beneath": beneath, **asdict(card)} for layer, expert, card in cards
    }


@torch.no_grad()
def cards_of_neurons(model: LoadedModel, traces: Sequence[CircuitTrace]) -> Cards:
    """Of each circuit neuron its classes' means, and the shipped prompts' tokens at which it is farthest from its mean."""
    if not traces:
        return {}
    prompts = example_prompts()
    encoded = encode(model, [prompt.text for prompt in prompts])
    seen = _read(model, traces, encoded)
    row = np.repeat(np.arange(len(prompts)), encoded.lengths)
    cards: Cards = {}
    for trace, values in zip(traces, seen, strict=True):
        for k, neuron in enumerate(trace.neurons):
            name = str(neuron)
            if name not in cards:
                cards[name] = {
                    "at": name,
                    "label": "",
                    "says": f"Number {k + 1} of {len(trace.neurons)} in the circuit of {trace.task}.",
                    "beneath": _beneath(trace, prompts, encoded),
                    "classes": {c: round(float(v[k]), 2) for c, v in trace.classes.items()},
                    "contexts": _contexts(model, values[:, k], prompts, encoded, row),
                }
            else:
                cards[name]["says"] += f" Number {k + 1} of {len(trace.neurons)} in that of {trace.task}."
    return cards


def _beneath(trace: CircuitTrace, prompts: Sequence[Prompt], encoded: Encoded) -> str:
    unit = "activation" if trace.mean is None else "z among its study's texts"
    where = f"From {int(encoded.lengths.sum()):,} tokens of {len(prompts)} shipped prompts"
    return f"{where}: the texts in which its {unit} is farthest from 0, one of each prompt."


def _read(model: LoadedModel, traces: Sequence[CircuitTrace], encoded: Encoded) -> list[np.ndarray]:
    """For each trace (T, K): z-scores, or activations as they are."""
    reader = CircuitReader(model, traces)
    found: list[list[np.ndarray]] = [[] for _ in traces]
    with reader.attached():
        for ids in encoded:
            model.body(input_ids=torch.from_numpy(ids.astype(np.int64))[None].to(model.device))
            for parts, trace in zip(found, traces, strict=True):
                parts.append(reader.values(trace))
    return [trace.units(np.concatenate(parts)) for parts, trace in zip(found, traces, strict=True)]


def _contexts(
    model: LoadedModel, values: np.ndarray, prompts: Sequence[Prompt], encoded: Encoded, row: np.ndarray
) -> list[tuple[str, list[tuple[str, bool]]]]:
    """(category and value, pieces of the text) of the strongest token of each of the prompts that have the strongest."""
    size = np.abs(np.where(np.isfinite(values), values, 0.0))
    size[encoded.special] = 0.0
    order = np.argsort(-size, kind="stable")
    _, first = np.unique(row[order], return_index=True)
    found = []
    for i in order[np.sort(first)][:_TOP]:
        near = (size >= size[i] / 2) & (
            np.sign(values) == np.sign(values[i])
        )  # a token that answers half as much is marked too
        text = marked_window(encoded.ids, row, int(i), near, lambda ids: str(model.tokenizer.decode(ids)))
        found.append((f"{values[i]:+.1f} {prompts[row[i]].category or ''}".strip(), marked(text)))
    return found
