"""Texts of a result to look at, from the tables that hold them: coloured by token, or with what counts in them marked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from moescope.report.format import number
from moescope.study.names import slug

_MARKED = re.compile("⟦([^⟦⟧]*)⟧")
SHOWN = 24
"""groups of texts of one table; the others are in the table"""


@dataclass(frozen=True)
class Texts:
    """Some texts under one head."""

    head: str
    about: str
    texts: list[tuple[str, Markup]]
    """what is said of each, and the text"""
    address: str
    """by which the page has them, and a figure's mark leads to them"""


def of_neuron(task: str, layer: int, neuron: int) -> str:
    """The address of the texts that a neuron of a task's circuit answers most."""
    return f"texts-{slug(task)}-L{layer}-N{neuron}"


def of_expert(layer: int, expert: int) -> str:
    """The address of the contexts of an expert."""
    return f"texts-L{layer}-E{expert}"


def texts(tables: Mapping[str, pd.DataFrame]) -> list[Texts]:
    """Those of ``neuron_texts``, ``misclassified`` and ``expert_contexts``, as far as a result has them."""
    return [
        group
        for name, (columns, shown) in _SHOWN.items()
        if name in tables and set(columns.split()) <= set(tables[name].columns)
        for group in shown(tables[name])
    ]


def _answering(table: pd.DataFrame) -> Iterator[Texts]:
    for (task, _rank, site, layer, neuron), rows in table.groupby(["task", "rank", "site", "layer", "neuron"], sort=False):
        largest = max(float(np.abs(np.asarray(values, dtype=float)).max()) for values in rows["activations"]) or 1.0
        yield Texts(
            f"{task}: what {site}:{layer}/{neuron} answers most",
            "Each token is coloured by the neuron's value there: blue above nought, red below.",
            [(f"{r['class']}, {number(r['value'])}", _coloured(r, largest)) for r in rows.to_dict("records")],
            of_neuron(task, layer, neuron),
        )


def _coloured(row: Mapping[Any, Any], largest: float) -> Markup:
    parts = []
    for token, value in zip(row["tokens"], row["activations"], strict=True):
        share = min(abs(float(value)) / largest, 1.0)
        side = "up" if value > 0 else "down"
        parts.append(Markup('<i class="{}" style="--a:{:.2f}" data-tip="{}">{}</i>').format(side, share, number(value), token))
    return Markup("").join(parts)


def _misclassified(table: pd.DataFrame) -> Iterator[Texts]:
    for task, rows in table.groupby("task", sort=False):
        yield Texts(
            f"{task}: held-out texts that the circuit gets wrong",
            "Those that it is surest of.",
            [
                (f"{r['class']}, taken for {r['predicted']} ({number(r['probability'])})", escape(r["text"]))
                for r in rows.to_dict("records")
            ],
            f"texts-{slug(str(task))}-wrong",
        )


def _contexts(table: pd.DataFrame) -> Iterator[Texts]:
    for count, ((layer, expert), rows) in enumerate(table.groupby(["layer", "expert"], sort=False)):
        if count == SHOWN:
            return
        yield Texts(
            f"Layer {layer}, expert {expert}: where it weighs most",
            "The tokens that it gets are marked.",
            [(f"{r['category']}, {number(r['weight'])}", _marks(str(r["text"]))) for r in rows.to_dict("records")],
            of_expert(layer, expert),
        )


def marked(text: str) -> list[tuple[str, bool]]:
    """(text, whether it is marked), in order, of a context with ⟦ ⟧ in it."""
    return [(part, bool(i % 2)) for i, part in enumerate(_MARKED.split(text)) if part]


def _marks(text: str) -> Markup:
    return Markup("").join(Markup("<mark>{}</mark>").format(part) if mine else part for part, mine in marked(text))


_SHOWN: dict[str, tuple[str, Callable[[pd.DataFrame], Iterator[Texts]]]] = {
    "neuron_texts": ("task rank site layer neuron class value tokens activations", _answering),
    "misclassified": ("task class predicted probability text", _misclassified),
    "expert_contexts": ("layer expert weight category text", _contexts),
}
"""By table: the columns that it must have, and what shows it."""
