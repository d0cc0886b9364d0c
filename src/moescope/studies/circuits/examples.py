"""Texts to look at: those that the circuit's first neurons answer most, token by token, and those that it gets wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moescope.capture.encode import pad
from moescope.capture.session import capture
from moescope.models import LoadedModel
from moescope.models.vision.reader import ImageReader
from moescope.studies.circuits.features import rows_of
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.tasks import ImageTask
from moescope.tasks.images.task import shown

NEURONS = 3
"""of the circuit, best first"""
_TOKENS, _CHARACTERS = 64, 400  # of a text, its end: where it is read


def example_tables(found: TaskFindings, model: LoadedModel, settings: CircuitSettings) -> dict[str, pd.DataFrame]:
    """Tables ``neuron_texts`` and ``misclassified`` of one task, ``settings.examples`` texts of different groups each."""
    return {"neuron_texts": _answering(found, model, settings), "misclassified": _misclassified(found, settings)}


def _answering(found: TaskFindings, model: LoadedModel, settings: CircuitSettings) -> pd.DataFrame:
    """The texts at which a neuron lies furthest on the side of the class that it tells best from the rest."""
    here, rows = found.features, []
    assert here.encoded is not None
    for place, (column, neuron) in enumerate(zip(found.ranking[:NEURONS], found.circuit.neurons, strict=False), 1):
        values = np.asarray(here.x[:, column], dtype=np.float64)
        means = np.array([values[here.y == c].mean() for c in range(here.n_classes)])
        side = 1.0 if means.max() - values.mean() >= values.mean() - means.min() else -1.0
        for row in _of_groups(np.argsort(-side * values, kind="stable"), here.groups, settings.examples):
            text, end = here.text_at(int(row))
            batch = pad(rows_of(here.encoded, np.array([text])), np.array([0]))
            with capture(model, [neuron.site]) as session:
                tensor = session.run(batch.ids.to(model.device), batch.mask.to(model.device))[neuron.site]
            own = tensor[0, :end, neuron.index].float().cpu().numpy().tolist()
            if isinstance(here.task, ImageTask):
                tokens, own = _of_image(here.task.examples[row].text, model.tokenizer, own)
            else:
                tokens = [model.tokenizer.decode([int(i)]) for i in here.encoded[text][:end]]
            rows.append(
                {
                    "task": here.task.name,
                    "rank": place,
                    "site": neuron.site.kind,
                    "layer": neuron.site.layer,
                    "neuron": neuron.index,
                    "class": here.task.classes[int(here.y[row])],
                    "value": float(values[row]),
                    "tokens": tokens[-_TOKENS:],
                    "activations": own[-_TOKENS:],
                }
            )
    return pd.DataFrame(rows)


def _of_image(path: str, reader: ImageReader, values: list[float]) -> tuple[list[str], list[float]]:
    """The places of an image that a neuron answers most, in their order, behind the image's name."""
    places = np.sort(np.argsort(-np.abs(values), kind="stable")[: _TOKENS - 1]).tolist()
    return [shown(path), *(f" {reader.place(i)}" for i in places)], [0.0, *(values[i] for i in places)]


def _misclassified(found: TaskFindings, settings: CircuitSettings) -> pd.DataFrame:
    """The held-out texts that the circuit is surest of and wrong about."""
    here, at = found.features, found.cv.ks.index(settings.k)
    scores, wrong = found.cv.scores[at], np.flatnonzero(~found.cv.correct[at])
    order = wrong[np.argsort(-scores[wrong].max(axis=1), kind="stable")]
    rows: list[dict[str, Any]] = []
    for row in _of_groups(order, here.groups, settings.examples):
        example = here.task.examples[row]
        text = " ".join((example.text if example.span is None else example.text[: example.span[1]]).split())
        text = shown(text) if isinstance(here.task, ImageTask) else text
        rows.append(
            {
                "task": here.task.name,
                "class": here.task.classes[int(here.y[row])],
                "predicted": here.task.classes[int(scores[row].argmax())],
                "probability": float(scores[row].max()),
                "text": text if len(text) <= _CHARACTERS else "…" + text[1 - _CHARACTERS :],
            }
        )
    return pd.DataFrame(rows)


def _of_groups(order: np.ndarray, groups: np.ndarray, most: int) -> list[int]:
    """The first rows of ``order`` that are of different groups."""
    first: dict[Any, int] = {}
    for row in order:
        if len(first) < most:
            first.setdefault(groups[row], int(row))
    return list(first.values())
