"""The atlas as one page: a map of all experts, and a card for each at its own address, ``#L5E17``.

The page is one file that loads nothing, and works without its script, which adds the search alone; the policy in its head lets
no other run. Every text of the model and of its prompts is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined

from moescope.report.format import interval, number, page_source, verdict_style
from moescope.types import Claim

FILE = "index.html"
_STEPS = (1.25, 2.0, 4.0, 8.0)
"""times its usual rate: where the shades of the map begin"""
_MARKED = re.compile("⟦([^⟦⟧]*)⟧")


@dataclass(frozen=True)
class Page:
    """The page as an artifact of a result."""

    html: str

    def write(self, folder: Path, /) -> None:
        """``index.html``."""
        (folder / FILE).write_text(self.html, encoding="utf-8")


@dataclass(frozen=True)
class _Card:
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
    parts = {name: _by_expert(tables.get(name)) for name in ("expert_tokens", "expert_categories", "expert_contexts")}
    cards = [_card(row, parts) for row in tables["experts"].to_dict("records")]
    rows: dict[int, list[_Card]] = {}
    for layer, card in zip(tables["experts"]["layer"], cards, strict=True):
        rows.setdefault(int(layer), []).append(card)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "interval": interval, "style": verdict_style}
    script = files(__package__).joinpath("page.js").read_text(encoding="utf-8")
    html = environment.from_string(page_source(__package__)).render(
        title=title,
        model=model,
        claims=claims,
        notes=notes,
        steps=[f"below {_STEPS[0]:g}", *(f"{a:g}" for a in _STEPS)],
        map=list(rows.items()),
        cards=cards,
        categories=sorted({card.category for card in cards if card.category}),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return Page(html)


def _by_expert(table: pd.DataFrame | None) -> dict[tuple[int, int], list[dict[str, object]]]:
    found: dict[tuple[int, int], list[dict[str, object]]] = {}
    for row in [] if table is None else table.to_dict("records"):
        found.setdefault((int(row["layer"]), int(row["expert"])), []).append({str(k): v for k, v in row.items()})
    return found


def _card(row: Mapping[str, object], parts: Mapping[str, Mapping[tuple[int, int], list[dict[str, object]]]]) -> _Card:
    layer, expert = int(str(row["layer"])), int(str(row["expert"]))
    tokens, categories, contexts = (parts[name].get((layer, expert), []) for name in parts)
    lift = float(str(row["token_lift"]))
    return _Card(
        f"L{layer}E{expert}",
        expert,
        str(row["label"]),
        sum(lift >= step for step in _STEPS),
        str(row["category"]),
        _says(row),
        [(_seen(str(t["token"])), _times(t["lift"])) for t in tokens],
        [(str(c["category"]), _times(c["lift"]), f"{_times(c['low'])} to {_times(c['high'])}") for c in categories],
        [(str(c["category"]), _pieces(str(c["text"]))) for c in contexts],
    )


def _says(row: Mapping[str, object]) -> str:
    said = [f"{100 * float(str(row['share'])):.1f} % of tokens", f"its tokens {_times(row['token_lift'])} on other prompts"]
    if row["category"]:
        beside = f"token identity alone {_times(row['identity_lift'])}"
        if "twin_largest" in row:
            beside += f", an untrained twin's experts of this layer up to {_times(row['twin_largest'])}"
        said.append(f"{row['category']} {_times(row['category_lift'])} on other prompts ({beside})")
    return "; ".join(said) + "."


def _times(lift: object) -> str:
    value = float(str(lift))
    return f"{value:.{2 if value < 10 else 0}f}×"


def _seen(token: str) -> str:
    """A token whose spaces can be seen."""
    return token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅"


def _pieces(text: str) -> list[tuple[str, bool]]:
    """(text, whether it is marked), in order."""
    return [(part, bool(i % 2)) for i, part in enumerate(_MARKED.split(text)) if part]
