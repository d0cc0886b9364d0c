"""How a number, an interval or a verdict is written, the same in the terminal, the figures and the HTML page."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
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
    phrase: str
    """after a number of claims: for one, and after the bar for several"""
    meaning: str


# The order is the order in which a reader wants them: what held, what failed, what could not be told, what was never evidence.
STYLES: dict[tuple[str, str], VerdictStyle] = {
    ("reproduced", ""): VerdictStyle(
        "★",
        "green",
        "reproduced",
        "Reproduced",
        "reproduced",
        "The same model, data and protocol as in the source give its figure.",
    ),
    ("holds", ""): VerdictStyle(
        "✓",
        "green",
        "reproduced",
        "Holds here",
        "holds|hold",
        "Shown on this model and these texts, and nothing that was tried beside it explains it.",
    ),
    ("holds", "chance"): VerdictStyle(
        "∼",
        "yellow",
        "chance",
        "Explained by chance",
        "holds but is explained by chance|hold but are explained by chance",
        "So it is, but chance alone gives as much.",
    ),
    ("holds", "trivial cue"): VerdictStyle(
        "¶",
        "magenta",
        "cue",
        "Explained by a trivial cue",
        "holds but is explained by a trivial cue|hold but are explained by a trivial cue",
        "There, but something on the surface of the text, or a model that was never trained, does as well.",
    ),
    ("holds", "leakage"): VerdictStyle(
        "⇄",
        "magenta",
        "cue",
        "Explained by leakage",
        "holds but is explained by leakage|hold but are explained by leakage",
        "There, but only as long as texts that are nearly the same stand on both sides of a split.",
    ),
    ("weaker", ""): VerdictStyle(
        "↓",
        "yellow",
        "chance",
        "Weaker than published",
        "is weaker than published|are weaker than published",
        "Of the published sign, but smaller by more than the margin, on the same model, data and protocol.",
    ),
    ("contradicted", "chance"): VerdictStyle(
        "≈",
        "red",
        "failed",
        "No more than chance",
        "is no more than chance|are no more than chance",
        "Anything as large as the smallest effect of interest is excluded: chance gives as much.",
    ),
    ("contradicted", ""): VerdictStyle(
        "✗",
        "red",
        "failed",
        "Does not hold here",
        "does not hold here|do not hold here",
        "Tested on this model and these texts: the opposite was shown, or that it is too small to matter.",
    ),
    ("inconclusive", ""): VerdictStyle(
        "?",
        "yellow",
        "chance",
        "Inconclusive",
        "is inconclusive|are inconclusive",
        "Neither the effect nor its absence could be shown; the words say what these texts could have shown.",
    ),
    ("undertrained", ""): VerdictStyle(
        "⊘",
        "yellow",
        "chance",
        "Undertrained",
        "is of students too little trained|are of students too little trained",
        "A gate failed: what was trained does not beat a trivial predictor, so nothing follows from it.",
    ),
    ("identity", ""): VerdictStyle(
        "=",
        "cyan",
        "identity",
        "True by construction",
        "is true by construction|are true by construction",
        "The number follows from how the quantity is defined and would come out on any data.",
    ),
    ("descriptive", ""): VerdictStyle(
        "·",
        "default",
        "measured",
        "Descriptive",
        "is descriptive|are descriptive",
        "A number beside which no hypothesis was tested.",
    ),
    ("not tested", ""): VerdictStyle(
        "○",
        "dim",
        "measured",
        "Not tested",
        "was not tested|were not tested",
        "What the test needs was not there; the words name it.",
    ),
}


def verdict_style(claim: Claim) -> VerdictStyle:
    """How the verdict of ``claim`` is shown."""
    return STYLES.get((claim.outcome, claim.explanation or ""), STYLES[claim.outcome, ""])


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


def numbers(claim: Claim) -> tuple[str, str, str, str, str]:
    """Published, measured, its interval, the control, and p with its value after Holm where that is another."""
    p = p_value(claim.p)
    if claim.p_adjusted is not None and p_value(claim.p_adjusted) != p:
        p += f" ({p_value(claim.p_adjusted)})"
    published, control = (None if c is None else c.value for c in (claim.published, claim.control))
    return number(published), number(claim.measured), interval(claim.interval), number(control), p


def beside(claim: Claim) -> str:
    """What the control's figure is of, and where the published one stands; empty without either."""
    parts = [f"control: {claim.control.name}"] if claim.control is not None else []
    parts += [f"published: {claim.published.source}"] if claim.published is not None else []
    return "; ".join(parts)


def tally(claims: tuple[Claim, ...]) -> list[tuple[VerdictStyle, int]]:
    """How many claims have each verdict, in reading order."""
    counts = Counter(verdict_style(claim).heading for claim in claims)
    return [(style, counts[style.heading]) for style in STYLES.values() if counts[style.heading]]


def headline(claims: tuple[Claim, ...]) -> str:
    """One sentence that counts the verdicts: ``Of 9 claims, 3 hold, 2 are inconclusive …``."""
    parts = [f"{n} {style.phrase.split('|')[-1 if n > 1 else 0]}" for style, n in tally(claims)]
    if not parts:
        return "No claims were made."
    listing = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    total = len(claims)
    return f"Of {total} claim{'s' if total != 1 else ''}, {listing}."


def page_source(package: str) -> str:
    """The ``page.html`` of a package with the style that all pages share, ``base.css``, in its place."""
    page, base = (files(where).joinpath(name) for where, name in ((package, "page.html"), ("moescope.report", "base.css")))
    return page.read_text(encoding="utf-8").replace("/* base.css */\n", base.read_text(encoding="utf-8"))


def page_script(package: str) -> tuple[str, str]:
    """The ``page.js`` of a package, and its SHA-256 as a Content-Security-Policy names it."""
    script = files(package).joinpath("page.js").read_text(encoding="utf-8")
    return script, base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
