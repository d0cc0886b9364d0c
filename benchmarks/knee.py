"""The error's knee on data whose sparsity is known: at k = s for sparse inputs, nowhere for Gaussian ones.

    python benchmarks/knee.py        # five minutes on one core

Inputs are sums of s of 128 orthogonal unit vectors, and the teacher has one neuron for each; top-k transcoders of 256
features are trained alike on them and on Gaussian inputs of the same mean and covariance that the same teacher labels. A
last case has twice as many vectors as dimensions. Beside each, what the teacher's own k most active neurons leave
unexplained. Writes benchmarks/results/knee.json and knee.png, and the claims to docs/evidence/distill-knee.json.
"""

from __future__ import annotations

import datetime
import json
import math
import time
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd

from dictionary import DictionarySettings, DictionaryTeacher, dictionary_pairs
from machine import describe
from moescope.files.atomic import write_atomic
from moescope.report.style import BLUE, VERMILLION, letter, look, new_figure
from moescope.routing.separation import clustered
from moescope.studies.distill.controls import control_pairs
from moescope.studies.distill.data import scaling_of
from moescope.studies.distill.evaluate import evaluate, fvu
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.students import LayerShape, Student
from moescope.studies.distill.training import Job, TrainSettings, train
from moescope.study.encode import claim_json
from moescope.study.verdicts import Case, Effect, verdicts
from moescope.types import Claim, Control

RESULTS = Path(__file__).parent / "results"
EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence" / "distill-knee.json"
WIDTH, SEEDS, STEPS, BATCH, RATE = 128, 3, 1000, 256, 2e-2
CASES = (  # atoms, active, the teacher's threshold
    (128, 2, 0.2),
    (128, 4, 0.2),
    (128, 8, 0.2),
    (256, 4, 0.7),  # not orthogonal: a neuron hears other atoms, up to about 0.6
)
MARGIN = math.log(DistillSettings().margin_ratio)
SHARES = (0.5, 0.75, 1, 1.25, 1.5, 2, 4)  # of s


def measure() -> pd.DataFrame:
    rows = []
    shape = LayerShape(WIDTH, WIDTH)
    for atoms, s, threshold in CASES:
        settings = DictionarySettings(atoms=atoms, active=s, width=WIDTH, threshold=threshold, tokens=40_000)
        teacher = DictionaryTeacher(settings)
        sizes = sorted({max(1, round(share * s)) for share in SHARES})
        sparse = dictionary_pairs(teacher)
        for data, pairs in (("sparse", sparse), ("gaussian", control_pairs("gaussian", sparse, teacher))):
            scaling = scaling_of(pairs)
            jobs = {
                (k, seed): Job(
                    Student(StudentSpec(kind="transcoder", experts=2 * atoms, active=k), shape, scaling, seed=seed), RATE
                )
                for k in sizes
                for seed in range(SEEDS)
            }
            train(pairs, {str(key): job for key, job in jobs.items()}, TrainSettings(steps=STEPS, batch=BATCH, every=STEPS))
            least = {k: fvu(partial(teacher, largest=k), pairs) for k in sizes}
            rows += [
                {
                    "atoms": atoms,
                    "s": s,
                    "data": data,
                    "k": k,
                    "seed": seed,
                    "fvu": evaluate(job.student, pairs).fvu,
                    "least": least[k],
                }
                for (k, seed), job in jobs.items()
            ]
            print(f"{s} of {atoms}, {data}: done", flush=True)
    return pd.DataFrame(rows)


def claims(table: pd.DataFrame) -> list[Claim]:
    """For each case: from half of s to s active features the error falls, and by more than on Gaussian inputs."""
    cases = []
    for atoms, s, _ in CASES:
        here = table[(table["atoms"] == atoms) & (table["s"] == s)]
        error = here.pivot(index=["data", "seed"], columns="k", values="fvu")
        half, by = max(1, s // 2), {data: error.loc[data] for data in ("sparse", "gaussian")}
        fall = {data: np.log(one[half] / one[s]).to_numpy() for data, one in by.items()}
        rest = np.log(by["sparse"][s] / by["sparse"][2 * s])
        own, beyond = (clustered(x, np.arange(SEEDS)) for x in (fall["sparse"], fall["sparse"] - fall["gaussian"]))
        left = here[(here["data"] == "sparse") & (here["k"] == s)]["fvu"].mean()
        cases.append(
            Case(
                f"inputs of {s} of {atoms} atoms: from {half} to {s} active features the error falls more than on Gaussian "
                "inputs of the same covariance",
                math.exp(own.value),
                Effect(*beyond[:3], "on Gaussian inputs", MARGIN, beyond.p, kind="none found", share=False),
                id="M4",
                interval=(math.exp(own.low), math.exp(own.high)),
                control=Control("Gaussian inputs", math.exp(fall["gaussian"].mean())),
                family="knee",
                words=f"ratios of errors, differences are of logarithms; at {s} a share of {left:.3f} is left, at {2 * s} a "
                f"further factor of {math.exp(rest.mean()):.1f} less; the intervals are over {SEEDS} seeds",
            )
        )
    return verdicts(cases)


def draw(table: pd.DataFrame) -> bytes:
    with look():
        figure = new_figure(2.3)
        panels = figure.subplots(1, len(CASES), sharey=True)
        for i, (axes, (atoms, s, _)) in enumerate(zip(panels, CASES, strict=True)):
            here = table[(table["s"] == s) & (table["atoms"] == atoms)]
            for data, ink, marker in (("sparse", BLUE, "o"), ("gaussian", VERMILLION, "s")):
                part = here[here["data"] == data].groupby("k")
                mean = part["fvu"].mean()
                axes.plot(mean.index, mean, color=ink, marker=marker, label=f"{data} inputs")
                axes.fill_between(mean.index, part["fvu"].min(), part["fvu"].max(), color=ink, alpha=0.2, lw=0)
                axes.plot(mean.index, part["least"].mean(), color=ink, lw=0.9, ls=(0, (2, 2)))
            axes.axvline(s, color="0.5", lw=0.8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(set(here["k"])), [str(k) for k in sorted(set(here["k"]))])
            axes.set_xticks([], minor=True)
            axes.set_ylim(0, 1)
            axes.set_xlabel("active features k")
            letter(axes, i, f"s = {s} of {atoms} atoms")
        panels[0].set_ylabel("FVU on test")
        panels[0].legend()
        out = BytesIO()
        figure.savefig(out, format="png", dpi=200)
    return out.getvalue()


def main() -> None:
    began, clock = time.time(), time.process_time()
    table = measure()
    means = table.groupby(["atoms", "s", "data", "k"], sort=False)[["fvu", "least"]].mean().reset_index()
    for column in ("fvu", "least"):
        print(
            column, means.pivot_table(index=["atoms", "s", "data"], columns="k", values=column).round(3).to_string(), sep="\n"
        )
    settings = {"width": WIDTH, "steps": STEPS, "batch": BATCH, "lr": RATE, "seeds": SEEDS}
    result = {"machine": describe(), **settings, "rows": json.loads(means.to_json(orient="records", double_precision=5))}
    for name, content in (("knee.json", (json.dumps(result, indent=1) + "\n").encode()), ("knee.png", draw(table))):
        write_atomic(RESULTS / name, [content])
    meta = {
        **{"title": "The knee at the sparsity of the inputs", "model": "planted dictionaries", "seed": 0, "settings": settings},
        **{"command": "python benchmarks/knee.py", "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")},
        **{"seconds": round(time.time() - began, 1), "cpu_seconds": round(time.process_time() - clock, 1), "device": "cpu"},
    }
    kept = {"kind": "distill", "meta": meta, "claims": [claim_json(claim) for claim in claims(table)]}
    write_atomic(EVIDENCE, [(json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode()])


if __name__ == "__main__":
    main()
