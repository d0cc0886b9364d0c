"""Planted truths of distillation: errors of two students document by document, and experts' uses of documents.

Documents differ in length and difficulty far more than students do; three seeds share most of what a document is. What is
judged are the study's own comparison, gate and claims.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from benchmarks.truths.harness import Truth
from moescope.studies.distill.categories import Uses, category_case
from moescope.studies.distill.claims import distill_claims
from moescope.studies.distill.comparisons import ratio_table
from moescope.studies.distill.evidence import Evidence
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.students import LayerShape
from moescope.study.verdicts import verdicts
from moescope.types import Claim

_SETTINGS = DistillSettings(layer=0, experts=1000, active=(32,), rank=64, router=("low-rank", "full"))
_ONE_ROUTER = replace(_SETTINGS, router=("low-rank",))
_LOW, _FULL = (name for name in _SETTINGS.students() if name.startswith("moe"))
_MARGIN = math.log(_SETTINGS.margin_ratio)
SIZES = (15, 60, 400)
HOLDS = frozenset({("holds", None)})
UNDERTRAINED = frozenset({("undertrained", None)})
FAILS = frozenset({("contradicted", None), ("contradicted", "chance")})


def claims(
    n: int,
    seed: int,
    *,
    gain: float,
    gaussian: float = 0.0,
    full: float | None = None,
    linear: float = 0.9,
    seeds: tuple[float, ...] = (0.0, 0.0, 0.0),
) -> list[Claim]:
    """Of a study with ``n`` held-out documents, in which log(dense / mixture) is ``gain`` on activations and ``gaussian`` on a
    hundred blocks of Gaussian rows; ``seeds`` are added to the gain of single runs."""
    rng, rows = np.random.default_rng(seed), []
    settings = _ONE_ROUTER if full is None else _SETTINGS
    for data, low, units in (("activations", gain, n), ("gaussian", gaussian, 100)):
        real = data == "activations"  # documents differ, blocks of Gaussian rows hardly
        size = np.exp(rng.normal(0, 0.7 if real else 0.05, units))
        students = {"dense 64": 0.0, _LOW: low} | ({} if full is None else {_FULL: low - full})
        for name, log in students.items():
            own = rng.normal(0, 0.15 if real else 0.03, units)  # what a student makes of a document in every run
            for number, shift in enumerate(seeds):
                noise = own + rng.normal(0, 0.05, units) - log - shift * (name == _LOW)
                error = 0.6 * size / size.sum() * np.exp(noise)
                rows += [(data, name, number, document, 50, e) for document, e in enumerate(error)]
    documents = pd.DataFrame(rows, columns=["data", "student", "seed", "document", "vectors", "error"])
    runs = documents.groupby(["data", "student", "seed"], sort=False)["error"].sum().groupby(["data", "student"], sort=False)
    summary = runs.agg(fvu="mean", worst="max").reset_index()
    dense = summary["student"] == "dense 64"
    summary = summary.assign(kind=np.where(dense, "dense", "moe"), router=None, active_neurons=64, dead=0.0, multiply_adds=1)
    tables = {
        "documents": documents,
        "summary": summary,
        "ratio": ratio_table(summary, documents),
        "baselines": pd.DataFrame([{"data": d, "baseline": "linear", "fvu": linear} for d in ("activations", "gaussian")]),
        "students": pd.DataFrame([{"status": "trained", "student": _LOW, "lr": 0.1, "data": "activations", "chosen": True}]),
    }
    return verdicts(distill_claims(Evidence(tables, settings), LayerShape(256, 256, "silu", True), None))


def _about(found: list[Claim], id: str, words: str) -> Claim:
    return next(c for c in found if c.id == id and words in c.statement and _LOW in c.statement)


def real_gain(n: int, seed: int) -> Claim:
    return _about(claims(n, seed, gain=math.log(1.3), gaussian=math.log(1.1)), "M1", "explain more")


def no_gain(n: int, seed: int) -> Claim:
    return _about(claims(n, seed, gain=0.0), "M1", "explain more")


def real_contrast(n: int, seed: int) -> Claim:
    return _about(claims(n, seed, gain=math.log(1.4), gaussian=math.log(1.1)), "M2", "gain more")


def gain_on_anything(n: int, seed: int) -> Claim:
    """The mixture explains more, on Gaussian inputs as much as on the layer's."""
    return _about(claims(n, seed, gain=math.log(1.4), gaussian=math.log(1.4)), "M2", "gain more")


def losing_to_a_linear_map(n: int, seed: int) -> Claim:
    """A ratio as clear as one likes, between students of which a linear map explains more."""
    return _about(claims(n, seed, gain=math.log(1.4), linear=0.3), "M1", "explain more")


def seeds_at_odds(n: int, seed: int) -> Claim:
    """Two runs gain and one loses, on every document."""
    return _about(claims(n, seed, gain=0.0, seeds=(0.25, 0.25, -0.15)), "M1", "explain more")


def routers_alike(n: int, seed: int) -> Claim:
    return _about(claims(n, seed, gain=0.3, full=0.0), "M3", "explains no less")


def worse_router(n: int, seed: int) -> Claim:
    return _about(claims(n, seed, gain=0.3, full=-0.2), "M3", "explains no less")


def _uses(n: int, rng: np.random.Generator, strength: float) -> Uses:
    """30 experts on n documents of four kinds; each answers documents at its own taste, and kinds by ``strength``."""
    kinds = np.arange(n) % 4
    tokens = rng.integers(100, 300, n).astype(float)
    taste = np.exp(rng.normal(0, 0.4, (30, n)) + strength * (np.arange(30)[:, None] % 4 == kinds))
    return Uses(np.arange(30), rng.poisson(0.05 * tokens * taste).astype(float), tokens, kinds)


def _category(n: int, seed: int, trained: float, untrained: float) -> Claim:
    rng = np.random.default_rng(seed)
    case = category_case("s", _uses(n, rng, trained), _uses(n, rng, untrained), _MARGIN, "", n_permutations=199, seed=seed)
    return verdicts([case])[0]


def experts_learn_kinds(n: int, seed: int) -> Claim:
    return _category(n, seed, 0.6, 0.1)


def untrained_experts_do_so_too(n: int, seed: int) -> Claim:
    """An untrained router sends kinds of text to different experts as well."""
    return _category(n, seed, 0.4, 0.4)


CUE = frozenset({("holds", "trivial cue")})
FOUND = frozenset({("holds", "none found")})
TRUTHS = [
    Truth("experts gain 30 % on held-out documents", HOLDS, FAILS, SIZES, real_gain),
    Truth("experts gain nothing", FAILS, HOLDS, SIZES, no_gain),
    Truth("experts gain more than on Gaussian inputs", HOLDS, FAILS, SIZES, real_contrast),
    Truth("experts gain as much on Gaussian inputs", FAILS, HOLDS, SIZES, gain_on_anything),
    Truth("students that lose to a linear map", UNDERTRAINED, HOLDS | FAILS, SIZES, losing_to_a_linear_map),
    Truth("seeds that do not agree on the sign", frozenset({("inconclusive", None)}), HOLDS, SIZES, seeds_at_odds),
    Truth("a low-rank router that is as good as a full one", HOLDS, FAILS, SIZES, routers_alike),
    Truth("a low-rank router that is 20 % worse", FAILS, HOLDS, SIZES, worse_router),
    Truth("experts learn kinds of text", FOUND, CUE | FAILS, (24, 60, 160), experts_learn_kinds),
    Truth("untrained experts tell kinds of text apart as well", CUE, FOUND, (24, 60, 160), untrained_experts_do_so_too),
]
