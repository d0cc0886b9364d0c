"""The atlas as one page: a map of all experts, and a card for each at its own address, ``#L5E17``.

The page is one file that loads nothing, and works without its script, which adds the search alone; the policy in its head lets
no other run. Every text of the model and of its prompts is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from moescope.report.format import page_script, page_source
from moescope.report.html import environment
from moescope.report.texts import marked
from moescope.types import Claim

FILE = "index.html"
_STEPS = (1.25, 2.0, 4.0, 8.0)
"""times its usual rate: where the shades of the map begin"""


@dataclass(frozen=True)
class Page:
    """The page as an artifact of a result."""

    html: str

    def write(self, folder: Path, /) -> None:
        """``index.html``."""
        (folder / FILE).write_text(self.html, encoding="utf-8")


@dataclass(frozen=True)
class Card:
    """What is said of one expert, as it is shown."""

    id: str
    expert: int
    label: str
    step: int
    category: str
    says: str
    tokens: list[tuple[str, str]]
    categories: list[tuple[str, str, str]]
    contexts: list[tuple[str, list[tuple[str, bool]]]]


def atlas_page(
    title: str, model: str, tables: Mapping[str, pd.DataFrame], claims: Sequence[Claim], notes: Sequence[str]
) -> Page:
    """Draw the page from the tables of the result."""
    cards = atlas_cards(tables)
    rows: dict[int, list[Card]] = {}
    for layer, card in zip(tables["experts"]["layer"], cards, strict=True):
        rows.setdefault(int(layer), []).append(card)
    script, digest = page_script(__package__)
    html = (
        environment()
        .from_string(page_source(__package__))
        .render(
            title=title,
            model=model,
            claims=claims,
            notes=notes,
            steps=[f"below {_STEPS[0]:g}", *(f"{a:g}" for a in _STEPS)],
            map=list(rows.items()),
            cards=cards,
            categories=sorted({card.category for card in cards if card.category}),
            script=script,
            script_hash=digest,
        )
    )
    return Page(html)


def atlas_cards(tables: Mapping[str, pd.DataFrame]) -> list[Card]:
    """A card for each row of ``experts``, which needs no more than layer, expert and share."""
    parts = {name: _by_expert(tables.get(name)) for name in ("expert_tokens", "expert_categories", "expert_contexts")}
    return [_card(row, parts) for row in tables["experts"].to_dict("records")]


def _by_expert(table: pd.DataFrame | None) -> dict[tuple[int, int], list[dict[str, Any]]]:
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in [] if table is None else table.to_dict("records"):
        found.setdefault((int(row["layer"]), int(row["expert"])), []).append({str(k): v for k, v in row.items()})
    return found


def _card(row: Mapping[str, Any], parts: Mapping[str, Mapping[tuple[int, int], list[dict[str, Any]]]]) -> Card:
    layer, expert = int(row["layer"]), int(row["expert"])
    tokens, categories, contexts = (parts[name].get((layer, expert), []) for name in parts)
    return Card(
        f"L{layer}E{expert}",
        expert,
        row.get("label", ""),
        sum(row.get("token_lift", 0) >= step for step in _STEPS),
        row.get("category", ""),
        _says(row),
        [(_seen(t["token"]), _times(t["lift"])) for t in tokens],
        [(c["category"], _times(c["lift"]), f"{_times(c['low'])} to {_times(c['high'])}") for c in categories],
        [(c["category"], marked(c["text"])) for c in contexts],
    )


def _says(row: Mapping[str, Any]) -> str:
    said = [f"{100 * row['share']:.1f} % of tokens"]
    if "token_lift" in row:
        said.append(f"its tokens {_times(row['token_lift'])} on other prompts")
    if row.get("category"):
        beside = f"token identity alone {_times(row['identity_lift'])}"
        if "twin_largest" in row:
            beside += f", an untrained twin's experts of this layer up to {_times(row['twin_largest'])}"
        said.append(f"{row['category']} {_times(row['category_lift'])} on other prompts ({beside})")
    return "; ".join(said) + "."


def _times(lift: float) -> str:
    return f"{lift:.{2 if lift < 10 else 0}f}×"


def _seen(token: str) -> str:
    """A token whose spaces can be seen."""
    return token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅"
