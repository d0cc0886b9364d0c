"""Puts what `python benchmarks/plan.py` measured, and the plans of two models that no laptop holds, into `docs/plan.md`.

python tools/plan.py            # the plans are made anew, the table from the saved numbers
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

from moescope.cli import main as moescope

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULT = ROOT / "docs" / "plan.md", ROOT / "benchmarks" / "results" / "plan.json"
GROWTH = ROOT / "benchmarks" / "results" / "scaling.json"
MARKS = ("<!-- measured, by tools/plan.py -->", "<!-- end of measured -->")
WORKED = {
    "405b": "plan circuits docs/plan/llama-405b.json --task certainty=halueval --no-twin --flops 8e14",
    "671b": "plan signatures docs/plan/deepseek-671b.json --flops 8e14",
}


def table() -> list[str]:
    """Planned beside measured, of the saved numbers."""
    told = json.loads(RESULT.read_text(encoding="utf-8"))
    lines = [
        "| command | forward tokens | of measured | FLOPs | of measured | peak | of measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in told["rows"]:
        plan, found = row["planned"], row["measured"]
        tokens = sum(plan["forward_tokens"].values())
        read = found.get("forward_tokens")
        same = f"{tokens / sum(n for name, n in read.items() if name not in ('bare', 'batching')):.1%}" if read else ""
        flops, peak = plan["flops"], plan["peak_bytes"]
        lines.append(
            f"| `{row['command']}` | {tokens:,} | {same} | {flops:.3g} | {flops / found['flops']:.1%} "
            f"| {peak / 2**20:,.0f} MiB | {peak / found['peak_bytes']:.1%} |"
        )
    return lines


def growth() -> list[str]:
    """Exponents, of the saved numbers."""
    axes = json.loads(GROWTH.read_text(encoding="utf-8"))["axes"]
    lines = ["| axis | from | to | seconds | exponent | MiB | exponent |", "|---|---|---|---|---|---|---|"]
    for name, found in axes.items():
        sizes, points, slopes = found["sizes"], found["points"], found["exponents"]
        seconds, grew = (f"{points[0][key]:.3g} to {points[-1][key]:.3g}" for key in ("seconds", "grew_mib"))
        both = f"{seconds} | {slopes['seconds']:.2f} | {grew} | {slopes['grew_mib']:.2f}"
        lines.append(f"| {name} | {sizes[0]} | {sizes[-1]} | {both} |")
    return lines


def between(text: str, marks: tuple[str, str], lines: list[str]) -> str:
    before, rest = text.split(marks[0], 1)
    return "\n".join([before + marks[0], *lines, marks[1] + rest.split(marks[1], 1)[1]])


def page() -> str:
    """The whole page with the tables written anew."""
    text = between(PAGE.read_text(encoding="utf-8"), MARKS, table())
    return between(text, ("<!-- grows -->", "<!-- end of grows -->"), growth())


def worked(command: str) -> list[str]:
    """What the command prints, but for what is of this machine."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        moescope(command.split())
    said = [line.partition("; ")[0] if line.startswith("memory") else line for line in out.getvalue().splitlines()]
    return ["```", f"moescope {command}", "```", "", "```text", *said, "```"]


if __name__ == "__main__":
    os.chdir(ROOT)
    text = page()
    for name, command in WORKED.items():
        text = between(text, (f"<!-- {name} -->", f"<!-- end of {name} -->"), worked(command))
    PAGE.write_text(text, encoding="utf-8")
