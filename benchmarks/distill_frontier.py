"""Error against whole cost: where does a mixture-of-experts student beat a dense one, router counted?

    python benchmarks/distill_frontier.py        # some minutes on one core

Layer 3 of the embedded model on the shipped WikiText-2 excerpt. Students with 16 shared neurons and 16 active experts, by each
router at about the same multiply-adds per token as the low-rank router with 4,096 experts (the product-key router far below
it), beside dense students of the same cost. Two seeds, one learning rate. Writes benchmarks/results/distill_frontier.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from machine import describe
from moescope.files.atomic import write_atomic
from moescope.models import load
from moescope.studies.distill.comparisons import summary_table
from moescope.studies.distill.layer_data import model_pairs, pieces
from moescope.studies.distill.runs import run_students
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.study import equal_cost_students
from moescope.studies.distill.teacher import Teacher
from moescope.tasks import plain_text

RESULT = Path(__file__).parent / "results" / "distill_frontier.json"
STEPS, RATE, SEEDS = 600, 3e-3, 2


def main() -> None:
    teacher = Teacher(load("dense-tiny"), 3)
    pairs = model_pairs(teacher, pieces(plain_text(), 512))
    experts = {"full": (1024,), "low-rank": (4096,), "product-key": (4096, 16384)}
    students = [
        StudentSpec(shared=16, experts=m, active=16, router=router, rank=64)  # type: ignore[arg-type]
        for router, sizes in experts.items()
        for m in sizes
    ]
    specs = {spec.name: spec for spec in students}
    specs |= equal_cost_students(specs, teacher.shape, None)
    settings = DistillSettings(layer=3, lr=(RATE,), seeds=SEEDS, steps=STEPS)
    runs = run_students(pairs, specs, teacher.shape, settings)
    table = summary_table(runs.rows.assign(data="activations"))
    columns = ["student", "fvu", "low", "high", "multiply_adds", "router_multiply_adds", "bytes_large_batch", "dead"]
    result = {"machine": describe(), "steps": STEPS, "lr": RATE, "rows": json.loads(table[columns].to_json(orient="records"))}
    write_atomic(RESULT, [(json.dumps(result, indent=1) + "\n").encode()])
    print(table[columns].to_string(index=False))


if __name__ == "__main__":
    main()
