"""From runs on several sources to the study's tables, and what goes with them: sizes, and dense students of equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from moescope.studies.distill.accounting import per_neuron, spec_cost
from moescope.studies.distill.comparisons import ratio_table, summary_table
from moescope.studies.distill.data import Pairs, count
from moescope.studies.distill.evidence import ACTIVATIONS
from moescope.studies.distill.runs import Runs
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.students import LayerShape, Scaling


def gathered(found: Mapping[str, Runs], baselines: Sequence[pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Tables ``students``, ``documents``, ``curves``, ``baselines``, ``summary``, ``ratio`` and ``load``, of runs by source."""
    frames = {
        "students": pd.concat([runs.rows.assign(data=name) for name, runs in found.items()], ignore_index=True),
        "documents": pd.concat([runs.documents.assign(data=name) for name, runs in found.items()], ignore_index=True),
        "curves": pd.concat([runs.curves.assign(data=name) for name, runs in found.items()], ignore_index=True),
        "baselines": pd.concat(baselines, ignore_index=True),
    }
    frames["summary"] = summary_table(frames["students"])
    frames["ratio"] = ratio_table(frames["summary"], frames["documents"])
    frames["load"] = _loads(found[ACTIVATIONS])
    return frames


def equal_cost_students(specs: dict[str, StudentSpec], shape: LayerShape, widest: int | None) -> dict[str, StudentSpec]:
    """A dense student for each expert student, with as many multiply-adds, router included; at most as wide as the
    teacher, which needs no more."""
    extra: dict[str, StudentSpec] = {}
    for spec in specs.values():
        if spec.kind != "dense":
            width = max(1, spec_cost(spec, shape)[0] // per_neuron(shape, shape.glu))
            dense = StudentSpec(kind="dense", shared=min(width, widest) if widest else width, start=spec.start)
            extra[dense.name] = dense
    return extra


def sizes(pairs: Pairs, scaling: Scaling) -> dict[str, float]:
    """Vectors that train and test, and the mean variance of a coordinate of inputs and of outputs."""
    variances = {"input_variance": scaling.x_scale**2, "output_variance": scaling.y_scale**2}
    return {"train": count(pairs, "train"), "test": count(pairs, "test"), **variances}


def _loads(runs: Runs) -> pd.DataFrame:
    """How often the experts of each student ran, most used first, at 64 ranks."""
    rows: list[dict[str, Any]] = []
    for name, found in runs.loads.items():
        if found.load is None:
            continue
        load = sorted(found.load, reverse=True)
        ranks = sorted({round((len(load) - 1) * i / 63) for i in range(64)})
        rows += [{"student": name, "rank": rank, "load": float(load[rank])} for rank in ranks]
    return pd.DataFrame(rows, columns=["student", "rank", "load"])
