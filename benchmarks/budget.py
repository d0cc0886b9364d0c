"""What to build for a budget: routers, ranks and widths of experts at equal multiply-adds, router counted.

    python benchmarks/budget.py        # some ten minutes of one core

Layer 3 of the embedded model on the shipped WikiText-2 excerpt. For 10, 20 and 40 % of the layer's own multiply-adds: a dense
student, and mixtures behind each kind of router, what the router leaves being shared out equally between neurons that always
run and experts. And students that differ in nothing but the router. Three seeds, one learning rate for each kind, the gates of
the study. Writes docs/evidence/distill-budget-dense-tiny.json, from which tools/architects.py makes docs/architects.md.
"""

from __future__ import annotations

import datetime
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from moescope.files.atomic import write_atomic
from moescope.models import load
from moescope.studies.distill.accounting import per_neuron, router_multiply_adds
from moescope.studies.distill.baselines import baseline_fvu
from moescope.studies.distill.comparisons import summary_table
from moescope.studies.distill.evidence import ACTIVATIONS, Evidence, interval, judged
from moescope.studies.distill.layer_data import model_pairs, pieces
from moescope.studies.distill.runs import run_students
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.students import LayerShape
from moescope.studies.distill.teacher import Teacher
from moescope.study.encode import claim_json, plain
from moescope.study.verdicts import Case, verdicts
from moescope.tasks import plain_text
from moescope.types import Claim

EVIDENCE = Path(__file__).resolve().parents[1] / "docs" / "evidence" / "distill-budget-dense-tiny.json"
LAYER, NEURONS, BUDGETS = 3, 640, (0.1, 0.2, 0.4)
RATES = {"dense": 1e-2, "moe": 5e-3}  # near those that contrast.py chose on validation of this layer
DESIGNS: tuple[dict[str, Any], ...] = (
    {"router": "full", "experts": 80, "width": 8},
    {"router": "low-rank", "rank": 16, "experts": 1024},
    {"router": "product-key", "rank": 64, "experts": 4096},
)
ROUTERS = (("full", 64), ("low-rank", 64), ("low-rank", 16))
"""Kind and rank of students that are alike otherwise."""


def within(budget: float, design: dict[str, Any], shape: LayerShape) -> StudentSpec | None:
    """The student of a design that costs at most ``budget`` neurons; None where its router leaves no expert."""
    neuron, width = per_neuron(shape, shape.glu), design.get("width", 1)
    router = router_multiply_adds(StudentSpec(active=1, **design), shape.d_in) / neuron
    active = int((budget - router) / 2 / width)
    return StudentSpec(active=active, shared=int(budget - router) - active * width, **design) if active > 0 else None


def students(shape: LayerShape) -> Iterator[tuple[float, StudentSpec]]:
    """Every student with its share of the layer's multiply-adds; of the routers' comparison with none."""
    for share in BUDGETS:
        yield share, StudentSpec(kind="dense", shared=int(share * NEURONS))
        for design in DESIGNS:
            spec = within(share * NEURONS, design, shape)
            if spec is not None:
                yield share, spec
    for router, rank in ROUTERS:
        yield 0.0, StudentSpec(shared=16, experts=1024, active=16, router=router, rank=rank)  # type: ignore[arg-type]


def claims(evidence: Evidence, chosen: list[tuple[float, StudentSpec]]) -> list[Claim]:
    """Experts beside the dense student of each budget, and low-rank routers beside the full one."""
    cases: list[Case | Claim] = []
    for share in BUDGETS:
        dense, *others = (spec.name for at, spec in chosen if at == share)
        for name in others:
            found = evidence.compared(ACTIVATIONS, dense, name)
            assert found is not None
            case = Case(
                f"error of {dense} / {name}, each at {share:.0%} of the layer's multiply-adds, router included: the experts "
                "explain more",
                math.exp(found.value),
                found.effect(f"what {dense} explains", evidence.margin),
                id="M5",
                interval=interval(found),
                gate=evidence.gate((dense, name), ACTIVATIONS),
                family="equal cost",
            )
            cases.append(judged(case, found))
    full, *low = (spec.name for at, spec in chosen if not at)
    for name in low:
        found = evidence.compared(ACTIVATIONS, full, name)
        assert found is not None
        for what, no_worse in (("no less", True), ("more", False)):
            case = Case(
                f"error with a full router / with a low-rank one, {name}: it explains {what}",
                math.exp(found.value),
                found.effect(full if no_worse else f"what {full} explains", evidence.margin, no_worse=no_worse),
                id="M3",
                interval=interval(found),
                gate=evidence.gate((full, name), ACTIVATIONS),
                family=f"routers: {what}",
            )
            cases.append(judged(case, found))
    return verdicts(cases)


def main() -> None:
    torch.set_num_threads(1)
    began, clock = time.time(), time.process_time()
    model = load("dense-tiny")
    teacher = Teacher(model, LAYER)
    pairs = model_pairs(teacher, pieces(plain_text(), 512))
    chosen = list(students(teacher.shape))
    parts = []
    for kind, rate in RATES.items():
        specs = {spec.name: spec for _, spec in chosen if spec.kind == kind}
        settings = DistillSettings(layer=LAYER, lr=(rate,), seeds=3, steps=600, batch=512)
        parts.append(run_students(pairs, specs, teacher.shape, settings))
        print(f"{kind}: {len(specs)} students", flush=True)
    rows, documents = (pd.concat([getattr(part, name) for part in parts]) for name in ("rows", "documents"))
    body: Any = model.body
    trivial = baseline_fvu(pairs, body.get_input_embeddings().weight.detach().float())
    tables = {
        "summary": summary_table(rows.assign(data=ACTIVATIONS)),
        "documents": documents.assign(data=ACTIVATIONS),
        "baselines": pd.DataFrame([{"data": ACTIVATIONS, "baseline": name, "fvu": fvu} for name, fvu in trivial.items()]),
    }
    found = claims(Evidence(tables, settings), chosen)
    columns = ["student", "fvu", "low", "high", "multiply_adds", "router_multiply_adds", "bytes_large_batch", "dead"]
    summary = tables["summary"].set_index("student")
    told = [{"share": share, **spec.json(), **summary.loc[spec.name].to_dict(), "student": spec.name} for share, spec in chosen]
    shown = pd.DataFrame(told)[["share", "kind", "router", "rank", "experts", "width", "shared", "active", *columns]]
    meta = {
        **{"title": "Layer 3 of dense-tiny, by budget", "model": "dense-tiny", "command": "python benchmarks/budget.py"},
        **{"date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"), "seconds": round(time.time() - began, 1)},
        **{"cpu_seconds": round(time.process_time() - clock, 1), "seed": 0, "settings": plain(settings), "device": "cpu"},
        **{"layer_multiply_adds": NEURONS * per_neuron(teacher.shape, teacher.shape.glu), "notes": []},
    }
    data = {"kind": "distill", "meta": meta, "claims": [claim_json(claim) for claim in found]}
    data["tables"] = {
        name: json.loads(frame.to_json(orient="split", index=False, double_precision=5))
        for name, frame in (("students", shown), ("baselines", tables["baselines"]))
    }
    write_atomic(EVIDENCE, [(json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()])
    print(shown.to_string(index=False))
    for claim in found:
        print(f"{claim.verdict}: {claim.statement}: {claim.words}")


if __name__ == "__main__":
    main()
