"""Writes `docs/truths.md` from what `make truths` and `python -m benchmarks.truths.coverage` measured.

python tools/truths.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "truths.md", ROOT / "benchmarks" / "results"


def page() -> str:
    """The whole page."""
    words, covered = (json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ("truths", "coverage"))
    names = {row["truth"] for row in words}
    least = min(row["right"] for row in words if row["largest"])
    most = max(words, key=lambda row: row["wrong"])
    missed = [row for row in covered if not row["passed"]]
    lines = [
        "# How often the verdicts are right where the truth is planted",
        "",
        "Written by `python tools/truths.py` from `benchmarks/results`.",
        "",
        "## Words",
        "",
        f"`make truths`: {len(names)} truths at {len(words)} sizes, {words[0]['repeats']} repeats of each. At its largest size",
        f"the right word came in at least {least:.1%} of the repeats of every truth; a wrong one (`contradicted` for what is",
        f"there, `holds` without an explanation for what is not) most often in {most['wrong']:.1%}: {most['truth']},",
        f"N = {most['n']}. The bounds are 80 % and 31 of 400 (7.75 %).",
        "",
        "| truth | N | right | wrong | said |",
        "|---|---|---|---|---|",
        *(_words(row) for row in words),
        "",
        "## Intervals and p",
        "",
        f"`python -m benchmarks.truths.coverage`: {len(covered)} rows of {covered[0]['asked']:,} draws,",
        f"{len(missed)} outside the bounds. An interval is to cover in 93 to 97 % of draws, a p under its null to be at most",
        ".05 in 3 to 7 % (at most 7 % where it is safe by construction). Of so many rows some are outside by luck (the error",
        f"of a share is 0.7 points): such a row is drawn {4 * covered[0]['asked']:,} times more with other seeds, these draws",
        f"decide, and what the first said stands behind them ({sum('first' in row for row in covered)} rows). Marked \\*: the",
        "overlap's interval rests on five halvings and takes Student's t; at few units a jackknife's variance is too large,",
        "never too small on average (Efron and Stein 1981). There at least 93 % is asked: a wide interval costs power and says",
        "nothing untrue.",
        "",
        "| routine | N | measured | within the bounds |",
        "|---|---|---|---|",
        *(_routine(row) for row in covered),
    ]
    return "\n".join(lines) + "\n"


def _words(row: dict[str, Any]) -> str:
    said = ", ".join(f"{word} {share:.0%}" for word, share in row["words"].items())
    return f"| {row['truth']} | {row['n']} | {row['right']:.1%} | {row['wrong']:.1%} | {said} |"


def _routine(row: dict[str, Any]) -> str:
    found = _found(row) + (f" (first {_found(row['first'])})" if "first" in row else "")
    found += r" \*" if row.get("wide") and row["coverage"] > 0.97 else ""
    return f"| {row['routine']} | {row['n']} | {found} | {'yes' if row['passed'] else '**no**'} |"


def _found(row: dict[str, Any]) -> str:
    if "coverage" in row:
        return f"covers {row['coverage']:.1%}"
    if "size" in row:
        return f"p ≤ .05 in {row['size']:.1%}"
    return f"{row.get('share', row.get('mean')):.3f}, promised at most {row['bound']:g}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
