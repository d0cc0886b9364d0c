"""Planted truths, and how often the verdict layer finds the right word for each.

    python -m benchmarks.truths                     # every truth of every study, 400 repeats; the table and the JSON
    python -m benchmarks.truths --only circuits --repeats 40

At the largest size of a truth the right word must come in at least 80 % of the repeats, a wrong one in at most 31 of 400 at any
size: ``contradicted`` for an effect that is there, ``holds`` without an explanation for one that is not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moescope.types import Claim

Word = tuple[str, str | None]
"""(outcome, explanation)"""
RIGHT, WRONG = 0.8, 31 / 400
_OTHERS = ("harness", "__main__", "bare", "routine", "intervals", "calibration", "coverage")
RESULTS = Path(__file__).resolve().parent.parent / "results" / "truths.json"


@dataclass(frozen=True)
class Truth:
    """A planted truth: what must be said at the largest size, and what must hardly ever be said at any."""

    name: str
    right: frozenset[Word]
    wrong: frozenset[Word]
    sizes: tuple[int, ...]
    draw: Callable[[int, int], Claim]
    """(N, seed) -> the claim"""


def truths(only: str = "") -> dict[str, Truth]:
    """Every truth by ``study: name``; ``only`` keeps those whose name holds it."""
    import benchmarks.truths as folder

    found = {}
    for module in pkgutil.iter_modules(folder.__path__):
        if module.name not in _OTHERS:
            for truth in importlib.import_module(f"benchmarks.truths.{module.name}").TRUTHS:
                found[f"{module.name}: {truth.name}"] = truth
    return {name: truth for name, truth in found.items() if only in name}


def _word(name: str, n: int, seed: int) -> tuple[Word, bool | None]:
    """The word of one repeat, and whether its interval holds the planted value where the truth knows it."""
    claim = truths()[name].draw(n, seed)
    planted = claim.details.get("planted")
    covered = None if planted is None or claim.interval is None else bool(claim.interval[0] <= planted <= claim.interval[1])
    return (claim.outcome, claim.explanation), covered


def measure(names: Iterable[str], repeats: int, workers: int) -> list[dict[str, object]]:
    """One row a truth and size: the share of each word, of the right and of a wrong one, and the interval's coverage."""
    rows: list[dict[str, object]] = []
    known = truths()
    with ProcessPoolExecutor(workers) as pool:
        for name in names:
            truth = known[name]
            for n in truth.sizes:
                began = time.time()
                drawn = list(pool.map(partial(_word, name, n), range(repeats), chunksize=8))
                words = Counter(word for word, _ in drawn)
                held = [covered for _, covered in drawn if covered is not None]
                rows.append(
                    {
                        "truth": name,
                        "n": n,
                        "repeats": repeats,
                        "largest": n == max(truth.sizes),
                        "words": {" / ".join(filter(None, word)): count / repeats for word, count in words.most_common()},
                        "right": sum(words[word] for word in truth.right) / repeats,
                        "wrong": sum(words[word] for word in truth.wrong) / repeats,
                        "coverage": sum(held) / len(held) if held else None,
                        "seconds": round(time.time() - began, 1),
                    }
                )
                print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, object]) -> str:
    """A row of the table in words."""
    words = ", ".join(f"{word} {share:.0%}" for word, share in row["words"].items())  # type: ignore[attr-defined]
    covered = "" if row["coverage"] is None else f"; interval covers {row['coverage']:.1%}"
    return f"{'FAULT ' if not passed(row) else ''}{row['truth']}, N = {row['n']}: {words}{covered}"


def passed(row: dict[str, object]) -> bool:
    """Whether a row keeps to the bounds."""
    return (not row["largest"] or float(row["right"]) >= RIGHT) and float(row["wrong"]) <= WRONG + 1e-9  # type: ignore[arg-type]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="How often the verdict layer finds the right word for planted truths.")
    parser.add_argument("--only", default="", help="truths whose name holds this")
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    chosen = truths(options.only)
    rows = measure(chosen, options.repeats, options.jobs)
    if not options.only and options.repeats >= 400:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    missed = [row for row in rows if not passed(row)]
    print(f"{len(chosen)} truths, {len(rows)} rows, {len(missed)} outside the bounds")
    sys.exit(bool(missed))
