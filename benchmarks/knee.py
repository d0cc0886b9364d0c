"""The error's knee on data whose sparsity is known: at k = s for sparse inputs, nowhere for Gaussian ones.

    python benchmarks/knee.py        # a minute on one core

Inputs are sums of s of 64 random unit vectors in 64 dimensions, and the teacher has one neuron for each; top-k transcoders of
128 features with k from 1 to 16 are trained alike on them and on Gaussian inputs of the same mean and covariance that the same
teacher labels. Writes benchmarks/results/knee.json and knee.png.
"""

from __future__ import annotations

import json
import os
from io import BytesIO
from pathlib import Path

import pandas as pd

from machine import describe
from moescope.distill import (
    DictionarySettings,
    DictionaryTeacher,
    Job,
    LayerShape,
    Student,
    StudentSpec,
    TrainSettings,
    control_pairs,
    dictionary_pairs,
    evaluate,
    scaling_of,
    train,
)
from moescope.report.style import BLUE, VERMILLION, letter, look, new_figure

RESULTS = Path(__file__).parent / "results"
ACTIVE, SIZES, SEEDS = (2, 4, 8), (1, 2, 3, 4, 6, 8, 12, 16), 1
ATOMS, FEATURES, STEPS, BATCH, RATE = 64, 128, 350, 256, 2e-2


def measure() -> pd.DataFrame:
    rows = []
    for s in ACTIVE:
        teacher = DictionaryTeacher(DictionarySettings(atoms=ATOMS, active=s, width=ATOMS, threshold=0.7, tokens=12_500))
        sparse = dictionary_pairs(teacher)
        for data, pairs in (("sparse", sparse), ("gaussian", control_pairs("gaussian", sparse, teacher))):
            scaling, shape = scaling_of(pairs), LayerShape(ATOMS, ATOMS)
            jobs = {
                (k, seed): Job(
                    Student(StudentSpec(kind="transcoder", experts=FEATURES, active=k), shape, scaling, seed=seed), RATE
                )
                for k in SIZES
                for seed in range(SEEDS)
            }
            train(pairs, {str(key): job for key, job in jobs.items()}, TrainSettings(steps=STEPS, batch=BATCH, every=STEPS))
            rows += [
                {"s": s, "data": data, "k": k, "seed": seed, "fvu": evaluate(job.student, pairs).fvu}
                for (k, seed), job in jobs.items()
            ]
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> bytes:
    with look():
        figure = new_figure(2.4)
        panels = figure.subplots(1, len(ACTIVE), sharey=True)
        for i, (axes, s) in enumerate(zip(panels, ACTIVE, strict=True)):
            for data, ink, marker in (("sparse", BLUE, "o"), ("gaussian", VERMILLION, "s")):
                part = table[(table["s"] == s) & (table["data"] == data)].groupby("k")["fvu"]
                axes.plot(part.mean().index, part.mean(), color=ink, marker=marker, label=f"{data} inputs")
                axes.fill_between(part.mean().index, part.min(), part.max(), color=ink, alpha=0.2, lw=0)
            axes.axvline(s, color="0.5", lw=0.8, ls=(0, (4, 2)))
            axes.set_xscale("log", base=2)
            axes.set_xticks(SIZES, [str(k) for k in SIZES])
            axes.set_ylim(0, 1)
            axes.set_xlabel("active features k")
            letter(axes, i, f"s = {s} atoms an input")
        panels[0].set_ylabel("FVU on test")
        panels[0].legend()
        out = BytesIO()
        figure.savefig(out, format="png", dpi=200)
    return out.getvalue()


def main() -> None:
    table = measure()
    means = table.groupby(["s", "data", "k"], sort=False)["fvu"].mean().reset_index()
    print(means.pivot_table(index=["s", "data"], columns="k", values="fvu").round(3).to_string())
    settings = {"atoms": ATOMS, "features": FEATURES, "steps": STEPS, "batch": BATCH, "lr": RATE, "seeds": SEEDS}
    result = {"machine": describe(), **settings, "rows": json.loads(means.to_json(orient="records", double_precision=5))}
    for name, content in (("knee.json", (json.dumps(result, indent=1) + "\n").encode()), ("knee.png", draw(table))):
        temporary = RESULTS / f".{name}.tmp"
        temporary.write_bytes(content)
        os.replace(temporary, RESULTS / name)


if __name__ == "__main__":
    main()
