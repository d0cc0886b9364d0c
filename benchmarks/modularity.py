"""Where do circuits of their own emerge in a world that is known, and are modules worth building in? docs/theory.md, part 2.

    python benchmarks/modularity.py                  # some twenty minutes of one core
    python benchmarks/modularity.py --figure-only    # the figure anew from the saved result

Small networks learn 2, 4 or 8 tasks whose features are common to a share (`toy.py`), at several widths, with and without
wrong labels, ten seeds each with a world of its own. Their circuits stand beside those of a hidden layer that was never
trained, and of the trained one in a random basis. Then layers whose modules are built in, beside dense ones of as many weights.
Writes docs/evidence/toy-modularity.json and docs/figures/modularity.png.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.toy import ROWS, STEPS, World, built_rows, cell_rows
from moescope.files.atomic import write_atomic
from moescope.report.style import heading, heat_cells, letter, look, new_figure
from moescope.routing.separation import Estimate, clustered
from moescope.studies.circuits.claims_pairs import OVERLAP_MARGIN
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.encode import claim_json, plain
from moescope.study.verdicts import Case, Effect, verdicts
from moescope.types import Claim, Control

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE, FIGURE = ROOT / "docs" / "evidence" / "toy-modularity.json", ROOT / "docs" / "figures" / "modularity.png"
TASKS, WIDTHS, SHARED, NOISE = (2, 4, 8), (16, 32, 64, 128), (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.2)
BUILT_WIDTHS, BUILT_SHARED, BUILT_ROWS = (32, 128), (0.0, 0.5, 1.0), (5000, None)
MARGIN, BETTER = CircuitSettings().margin, 0.01
"""Smallest difference of accuracies that counts: of an ablation, and between two ways to build a layer."""


def over_seeds(values: np.ndarray) -> Estimate:
    """Their mean with Student's t over seeds."""
    return clustered(values, np.arange(len(values)))


def _effect(values: np.ndarray, against: str, margin: float, **options: Any) -> Effect:
    found = over_seeds(values)
    return Effect(found.value, found.low, found.high, against, margin, found.p, **options)


def emergence_cases(cells: pd.DataFrame) -> list[Case]:
    """For each share of common features, over all tasks, widths and noise: do circuits part, and do they act apart?"""
    cases = []
    for shared, here in cells.groupby("shared"):
        of = {name: rows.groupby("seed").mean(numeric_only=True) for name, rows in here.groupby("basis")}
        gap, lost = ({name: part[c].to_numpy() for name, part in of.items()} for c in ("gap", "specificity"))
        said, middle = f"{shared:.0%} of the tasks' features are common", of["trained"].mean()
        cases.append(
            Case(
                f"{said}: each circuit repeats itself on other inputs more than it resembles the other's",
                float(gap["trained"].mean()),
                _effect(gap["trained"], "they share with each other, of what each shares with itself", OVERLAP_MARGIN),
                id="H23",
                interval=over_seeds(gap["trained"])[1:3],
                control=Control("a hidden layer that was never trained", float(gap["untrained"].mean())),
                rivals=(
                    _effect(gap["trained"] - gap["untrained"], "in a hidden layer that was never trained", OVERLAP_MARGIN),
                    _effect(gap["trained"] - gap["rotated"], "in a random basis of the same layer", OVERLAP_MARGIN),
                ),
                family="toy: emergence",
                words=f"a circuit repeats {middle['own']:.0%} of itself, shares {middle['cross']:.0%} with the other and "
                f"{middle['chance']:.0%} by permuted labels; in a random basis the gap is {gap['rotated'].mean():.2f}; the "
                f"intervals are over {len(gap['trained'])} seeds",
            )
        )
        fewer = {name: 1 - part["cross"].to_numpy() / part["chance"].to_numpy() for name, part in of.items()}
        cases.append(
            Case(
                f"{said}: the circuits of two tasks share fewer neurons than chance",
                float(fewer["trained"].mean()),
                _effect(fewer["trained"], "permuted labels, of what these share", OVERLAP_MARGIN),
                id="H23",
                interval=over_seeds(fewer["trained"])[1:3],
                control=Control("a random basis of the same layer", float(fewer["rotated"].mean())),
                rivals=tuple(
                    _effect(fewer["trained"] - fewer[name], against, OVERLAP_MARGIN)
                    for name, against in (
                        ("rotated", "in a random basis of the same layer"),
                        ("untrained", "in a hidden layer that was never trained"),
                    )
                ),
                family="toy: emergence",
                words="between halves, 1 is none shared and 0 as many as by permuted labels; the intervals are over "
                f"{len(fewer['trained'])} seeds",
            )
        )
        cases.append(
            Case(
                f"{said}: without its own circuit a task loses more accuracy than the other does",
                float(lost["trained"].mean()),
                _effect(lost["trained"], "from the other", MARGIN),
                id="H23",
                interval=over_seeds(lost["trained"])[1:3],
                control=Control("a hidden layer that was never trained", float(lost["untrained"].mean())),
                rivals=(_effect(lost["trained"] - lost["untrained"], "in a hidden layer that was never trained", MARGIN),),
                family="toy: emergence",
                words=f"an eighth of the neurons at their mean; the intervals are over {len(lost['trained'])} seeds",
            )
        )
    return cases


def built_cases(built: pd.DataFrame) -> list[Case]:
    """Modules from initialisation beside a dense layer of as many weights, for each share of common features and data."""
    cases = []
    for (rows, shared), here in built.groupby(["rows", "shared"]):
        mean = here.groupby(["kind", "seed"])["accuracy"].mean().unstack("kind")
        gain = (mean["modules"] - mean["dense"]).to_numpy()
        data = f"{rows:,} inputs" if rows else "new inputs in every step"
        cases.append(
            Case(
                f"{shared:.0%} of the tasks' features are common, {data}: "
                "modules built in answer more rightly than a dense layer of as many weights",
                float(mean["modules"].mean()),
                _effect(gain, "the dense layer", BETTER),
                id="H18",
                interval=over_seeds(mean["modules"].to_numpy())[1:3],
                control=Control("a dense layer of as many weights", float(mean["dense"].mean())),
                rivals=(
                    _effect((mean["modules"] - mean["random mask"]).to_numpy(), "read-outs as sparse but not apart", BETTER),
                ),
                family="toy: built in",
                words=f"read-outs as sparse but drawn at random give {mean['random mask'].mean():.3f}; the intervals are over "
                f"{len(mean)} seeds",
            )
        )
    return cases


def draw(cells: pd.DataFrame) -> bytes:
    """The phase diagram: by tasks (columns) and measure (rows), width against the share of common features."""
    with look():
        figure = new_figure(4.6)
        columns = list(product(sorted(cells["noise"].unique()), sorted(cells["tasks"].unique())))
        panels = figure.subplots(3, len(columns), sharex=True, sharey=True)
        widths, shares = sorted(cells["width"].unique()), sorted(cells["shared"].unique())
        for column, (noise, tasks) in enumerate(columns):
            here = cells[(cells["noise"] == noise) & (cells["tasks"] == tasks)]
            grid = here.groupby(["basis", "shared", "width"]).mean(numeric_only=True)
            trained = grid.loc["trained"]
            fewer = 1 - trained["cross"] / trained["chance"]
            for row, (values, low, high) in enumerate(
                ((trained["gap"], 0, 0.6), (fewer, -1, 1), (trained["specificity"], 0, 0.3))
            ):
                axes = panels[row, column]
                shown = np.round(values.unstack("width").to_numpy(), 2) + 0.0  # no negative nought
                heat_cells(
                    axes, shown, low, high, [[f"{v:.2f}".replace("0.", ".").replace("-", "−") for v in line] for line in shown]
                )
                axes.set_xticks(range(len(widths)), [str(w) for w in widths])
                axes.set_yticks(range(len(shares)), [f"{s:.0%}" for s in shares])
                if row == 0:
                    letter(axes, column, f"{tasks} tasks" + ", noise" * bool(noise))
                if row == 2:
                    axes.set_xlabel("neurons")
                if column == 0:
                    heading(axes, ("own − shared", "fewer than chance", "own loss − other's")[row])
        out = BytesIO()
        figure.savefig(out, format="png", dpi=170)
    return out.getvalue()


def measure() -> tuple[pd.DataFrame, pd.DataFrame]:
    cells: list[dict[str, Any]] = []
    built: list[dict[str, Any]] = []
    for tasks, width, shared, noise in product(TASKS, WIDTHS, SHARED, NOISE):
        cells += cell_rows(World(tasks=tasks, shared=shared, noise=noise), width)
        print(f"{tasks} tasks, {width} neurons, {shared:.0%} common, {noise:.0%} noise", flush=True)
    for tasks, width, shared, rows in product(TASKS, BUILT_WIDTHS, BUILT_SHARED, BUILT_ROWS):
        built += built_rows(World(tasks=tasks, shared=shared), width, rows)
        print(f"built in: {tasks} tasks, {width} neurons, {shared:.0%} common, {rows or 'new'} inputs", flush=True)
    return pd.DataFrame(cells), pd.DataFrame(built)


def judged(cells: pd.DataFrame, built: pd.DataFrame) -> list[Claim]:
    return verdicts([*emergence_cases(cells), *built_cases(built)])


def _table(frame: pd.DataFrame) -> dict[str, Any]:
    return json.loads(frame.round(4).to_json(orient="split", index=False))


def load() -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """The saved result, its cells and its built layers."""
    data = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    return data, *(pd.DataFrame(**data["tables"][name]) for name in ("cells", "built"))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description="Where circuits of their own emerge in a toy world.")
    parser.add_argument("--figure-only", action="store_true", help="draw and judge the saved result anew")
    if parser.parse_args().figure_only:
        data, cells, built = load()
    else:
        torch.set_num_threads(1)
        began, clock = time.time(), time.process_time()
        cells, built = measure()
        settings = {"tasks": TASKS, "widths": WIDTHS, "shared": SHARED, "noise": NOISE, "steps": STEPS, "rows": ROWS}
        meta = {
            **{"title": "A toy world of planted features", "model": "networks of one hidden layer"},
            **{
                "command": "python benchmarks/modularity.py",
                "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
            },
            **{"seconds": round(time.time() - began, 1), "cpu_seconds": round(time.process_time() - clock, 1), "seed": 0},
            **{"settings": plain(settings), "device": "cpu", "notes": []},
        }
        data = {"kind": "toy", "meta": meta}
    data["claims"] = [claim_json(claim) for claim in judged(cells, built)]
    data["tables"] = {"cells": _table(cells), "built": _table(built)}
    FIGURE.parent.mkdir(exist_ok=True)
    write_atomic(EVIDENCE, [(json.dumps(data, ensure_ascii=False) + "\n").encode()])
    write_atomic(FIGURE, [draw(cells)])
    for claim in data["claims"]:
        print(f"{claim['outcome']}, {claim['explanation']}: {claim['statement']}: {claim['words']}")


if __name__ == "__main__":
    main()
