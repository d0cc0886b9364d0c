"""How a number, an interval or a verdict is written, the same in the terminal, the figures and the HTML page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from moescope.types import Claim

DASH = "–"


@dataclass(frozen=True)
class VerdictStyle:
    """How one verdict is shown. ``mark`` tells it apart without colour; ``meaning`` is one sentence for a reader."""

    mark: str
    rich: str
    css: str
    heading: str
    meaning: str


# The order is the order in which a reader wants them: what held, what failed, what was never evidence.
VERDICTS: dict[str, VerdictStyle] = {
    "reproduced": VerdictStyle(
        "✓",
        "green",
        "reproduced",
        "Reproduced",
        "The published statement holds here, and the null or control beside it does not explain it.",
    ),
    "not reproduced": VerdictStyle(
        "✗",
        "red",
        "failed",
        "Not reproduced",
        "The statement was tested on this model and these texts, and what was measured contradicts it.",
    ),
    "explained by chance": VerdictStyle(
        "≈",
        "yellow",
        "chance",
        "Explained by chance",
        "The number is what a null without any structure would give; it is no evidence either way.",
    ),
    "explained by a trivial cue": VerdictStyle(
        "¶",
        "magenta",
        "cue",
        "Explained by a trivial cue",
        "Something on the surface of the text (its length, its last character, its words) does as well.",
    ),
    "identity": VerdictStyle(
        "=",
        "cyan",
        "identity",
        "True by construction",
        "The number follows from how the quantity is defined and would come out on any data.",
    ),
    "measured": VerdictStyle(
        "·",
        "default",
        "measured",
        "Measured, without a verdict",
        "A new or descriptive number: nothing published to hold it against, or no test was made.",
    ),
}


def verdict_style(verdict: str) -> VerdictStyle:
    """The style of ``verdict``; one that is not known is shown as "measured"."""
    return VERDICTS.get(verdict, VERDICTS["measured"])


def number(value: Any) -> str:
    """``value`` as a reader wants it: at most three decimals, thousands grouped, a dash for None and NaN.

    Text passes through; booleans are yes / no; anything else is ``str``.
    """
    if value is None:
        return DASH
    if isinstance(value, str):
        return value or DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    try:
        x = float(value)
    except (TypeError, ValueError):
        return str(value)
    if math.isnan(x):
        return DASH
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    size = abs(x)
    if x == int(x) and size < 1e15 and (size >= 10 or not isinstance(value, float)):
        text = f"{int(x):,}"
    elif size == 0:
        text = "0"
    elif size < 1e-3:
        text = f"{x:.1e}"
    elif size < 10:
        text = f"{x:.3f}"
    elif size < 100:
        text = f"{x:.2f}"
    elif size < 1e7:
        text = f"{x:,.1f}"
    else:
        text = f"{x:.3g}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def interval(bounds: tuple[float, float] | None) -> str:
    """``low to high``; a dash where there is none."""
    if bounds is None or any(b is None or math.isnan(b) for b in bounds):
        return DASH
    return f"{number(bounds[0])} to {number(bounds[1])}"


def p_value(p: float | None) -> str:
    """A p-value: two significant figures down to 0.001, below that ``<0.001``."""
    if p is None or math.isnan(p):
        return DASH
    if p < 1e-3:
        return "<0.001"
    if p >= 0.995:
        return "1.00"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def tally(claims: tuple[Claim, ...]) -> dict[str, list[Claim]]:
    """The claims under their verdict, verdicts in reading order, empty ones left out."""
    groups: dict[str, list[Claim]] = {verdict: [] for verdict in VERDICTS}
    for claim in claims:
        groups.setdefault(claim.verdict, []).append(claim)
    return {verdict: group for verdict, group in groups.items() if group}


_PHRASES = {
    "reproduced": ("reproduced", "reproduced"),
    "not reproduced": ("was not reproduced", "were not reproduced"),
    "explained by chance": ("is what chance gives", "are what chance gives"),
    "explained by a trivial cue": ("is explained by a trivial cue", "are explained by a trivial cue"),
    "identity": ("is true by construction", "are true by construction"),
    "measured": ("was measured without a verdict", "were measured without a verdict"),
}


def headline(claims: tuple[Claim, ...]) -> str:
    """One sentence that counts the verdicts: ``Of 9 claims, 3 reproduced, 2 were not reproduced …``."""
    groups = tally(claims)
    if not groups:
        return "No claims were made."
    parts = [f"{len(g)} {_PHRASES.get(v, (v, v))[len(g) != 1]}" for v, g in groups.items()]
    listing = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    total = len(claims)
    return f"Of {total} claim{'s' if total != 1 else ''}, {listing}."


def page_source(package: str) -> str:
    """The ``page.html`` of a package with the style that all pages share, ``base.css``, in its place."""
    page, base = (files(where).joinpath(name) for where, name in ((package, "page.html"), ("moescope.report", "base.css")))
    return page.read_text(encoding="utf-8").replace("/* base.css */\n", base.read_text(encoding="utf-8"))
