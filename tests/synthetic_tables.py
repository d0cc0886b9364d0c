"""Made-up tables of the studies other than circuits, with the columns that their figures read and names of any length."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.study.result import StudyResult


def synthetic_results(name: str = "{}") -> list[StudyResult]:
    """One result of each kind; every name that a user or a model may give is put into ``name``."""
    rng = np.random.default_rng(0)
    kinds = [name.format(c) for c in ("code", "mathematics", "prose", "poems")]
    return [
        StudyResult("signatures", {}, tables=_signatures(kinds, name, rng)),
        StudyResult("distill", {}, tables=_distill(name)),
        StudyResult("convert", {}, tables=_convert(name)),
        StudyResult("exit", {}, tables=_exit(name)),
        StudyResult("steer", {}, tables={"effects": _effects(kinds, name)}),
        StudyResult("prune", {}, tables={"pruning": _pruning(name), "domains": _domains(name)}),
        StudyResult("robustness", {}, tables=_robustness(name, rng)),
        StudyResult("transfer", {}, tables={"similarity": _layer_pairs(28, rng)}),
        StudyResult("route", {}, tables={"layers": _routers(name)}),
        StudyResult("agreement", {}, tables={"layers": _agreement(rng)}),
        StudyResult("residency", {}, tables=_residency(kinds, rng)),
        StudyResult("targets", {}, tables=_targets(kinds, rng)),
        StudyResult("atlas", {}, tables={"layers": _atlas()}),
        StudyResult("sparsify", {}, tables={"frontier": _chosen()}),
        StudyResult("choice", {}, tables=_choice(name, rng)),
    ]


def _routers(name: str) -> pd.DataFrame:
    layers = list(range(8))
    return pd.DataFrame(
        {
            "layer": layers,
            "share": [(i + 1) / 30 for i in layers],
            "accuracy": [0.6 + 0.04 * i for i in layers],
            "low": [0.5 + 0.04 * i for i in layers],
            "high": [0.7 + 0.03 * i for i in layers],
            "used": [i == 7 for i in layers],
            "cue": name.format("ends with a full stop"),
            "cue_accuracy": 0.7,
            "chance": 0.33,
        }
    )


def _agreement(rng: np.random.Generator) -> pd.DataFrame:
    shared = 1 - np.sort(rng.uniform(0, 0.2, 16))
    columns = {"shared": shared, "low": shared - 0.02, "high": shared + 0.01, "same": shared**8, "yardstick": shared + 0.01}
    return pd.DataFrame({"layer": range(16), **columns, "first": rng.dirichlet(np.ones(16)) / 3, "chance": 0.14})


def _residency(kinds: list[str], rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    rules = ("least recently used", "least often used", "pinned by other requests", "least recently used, with lookahead")
    rules = (*rules, "fewest possible", "uniform router, least recently used", "uniform router, fewest possible")
    policies = pd.DataFrame([(rule, c, c / 64 + 0.03 * i) for c in (8, 16, 32, 48) for i, rule in enumerate(rules)])
    policies.columns = pd.Index(["policy", "capacity", "hit_rate"])
    policies = policies.assign(low=policies["hit_rate"] - 0.01, high=policies["hit_rate"] + 0.01, over_fewest=1.5)
    hits = rng.uniform(0.3, 0.6, 16)
    domains = pd.DataFrame(
        [(kind, by) for by in ("its own", "the others") for kind in kinds], columns=["category", "pinned_by"]
    )
    places = [(d, name) for d in (2, 4, 8) for name in ("contiguous", "fitted", "random")]
    placement = pd.DataFrame(places, columns=["devices", "placement"]).assign(busiest=1.2, low=1.1, high=1.3)
    return {
        "policies": policies.assign(loaded=128 * (1 - policies["hit_rate"])),
        "layers": pd.DataFrame({"layer": range(16), "lru": hits, "static": hits - 0.1, "fewest": hits + 0.2, "uniform": 0.25}),
        "domains": domains.assign(hit_rate=0.5, low=0.4, high=0.6, loaded=60.0),
        "placement": placement.assign(busiest_in_batch=1.25),
    }


def _targets(kinds: list[str], rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    names = [*map(str, range(16)), "all"]
    needed = rng.uniform(1e4, 1e6, 17)
    layers = pd.DataFrame({"layer": names, "experts": 64, "reached": 60, "unseen": [i % 3 for i in range(17)]})
    layers["needed"] = np.where(layers["unseen"] > 0, np.nan, needed)
    layers["needed_low"], layers["needed_high"] = needed / 2, 3 * layers["needed"]
    layers["even_needed"] = 900
    carriers = [
        {"layer": i, "expert": e, "category": kinds[(i + e) % len(kinds)], "lift": 2 ** rng.normal(), "carries": e % 7 == 0}
        for i in range(16)
        for e in range(64)
    ]
    return {"layers": layers, "carriers": pd.DataFrame(carriers)}


def _choice(name: str, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    figures = ("pairs", "groups", "rates_pairs", "rates_groups")
    figures = (*figures, "recurring_pairs", "recurring_groups", "tokens_pairs", "tokens_groups")
    together = pd.DataFrame({"layer": range(12), **{figure: rng.uniform(0, 0.4, 12) for figure in figures}})
    circuits = pd.DataFrame({"task": [name.format("certainty"), name.format("sentiment")], "shared": [0.4, 0.1]})
    for null in ("layers", "often", "permuted"):
        circuits = circuits.assign(**{null: 0.05, f"{null}_low": 0.0, f"{null}_high": 0.1})
    return {"together": together, "circuits": circuits}


def _atlas() -> pd.DataFrame:
    layers = np.arange(16)
    names = ("token", "category", "identity", "prompt_token", "twin_token", "prompt_category", "twin_category")
    bits = {f"{name}_bits": (i + layers / 16) / 4 for i, name in enumerate(names)}
    return pd.DataFrame({"layer": layers, "experts": 64, "labelled": 40, **bits})


def _signatures(kinds: list[str], name: str, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    layers = list(range(24))
    prompts = [k for k in kinds for _ in range(12)]
    cells = [(layer, expert) for layer in layers for expert in range(16)]
    shown = [(layer, 3 * layer % 16) for layer in layers[:8]]
    nulls = ("measured routing", "labels permuted", "uniform random routing", "own counts reshuffled", "same token reshuffled")
    features = [("signature", "signature"), ("null", "majority"), *(("cue", name.format(f"cue {i}")) for i in range(5))]
    splits = ("stratified folds", "held-out topics", "held-out templates", "length-matched")
    return {
        "routing_layers": pd.DataFrame(
            {
                "layer": layers,
                "within": 0.93,
                "across": 0.88,
                "d": rng.normal(1, 0.2, 24),
                "p_family": 0.01,
                "null_d_95": 0.2,
            }
        ),
        "layer_nulls": pd.DataFrame(
            [{"null": n, "layer": i, "within": 0.8} for n in ("uniform", "own counts reshuffled") for i in layers]
        ),
        "routing_nulls": pd.DataFrame(
            [
                {"null": n, "within": 0.9, "across": 0.85, "d": 1.0, "d_low": 0.8, "d_high": 1.2}
                for n in (*nulls, "random model")
            ]
        ),
        "random_curve": pd.DataFrame(
            [
                {
                    "tokens": 2**i,
                    "closed_form": 1 - 0.5**i,
                    "simulated": 1 - 0.5**i,
                    "within": 1 - 0.4**i,
                    "across": 1 - 0.45**i,
                }
                for i in range(1, 10)
            ]
        ),
        "routing_accuracy": pd.DataFrame(
            [
                {"split": s, "kind": kind, "features": f, "accuracy": 0.5 + 0.05 * i, "low": 0.4, "high": 0.9}
                for s in splits
                for i, (kind, f) in enumerate(features)
            ]
        ),
        "confusion": pd.DataFrame(
            [{"true": a, "predicted": b, "share": 0.85 if a == b else 0.05} for a in kinds for b in kinds]
        ),
        "signature_map": pd.DataFrame(
            {"category": prompts, "pc1_explained": 0.31, "pc2_explained": 0.12}
            | {c: rng.normal(size=len(prompts)) for c in ("pc1", "pc2", "tsne1", "tsne2")}
        ),
        "category_similarity": pd.DataFrame([{"category": a, "other": b, "cosine": 0.9} for a in kinds for b in kinds]),
        "similarity_matrix": pd.DataFrame(
            {"category": prompts, "cosine": list(rng.uniform(0.8, 1, (len(prompts), len(prompts))))}
        ),
        "routing_load": pd.DataFrame(
            {"layer": layers, "effective": 0.9, "effective_low": 0.85, "effective_high": 0.95, "balanced_effective": 1.0}
            | {"most": rng.uniform(1.2, 4, 24), "most_low": 1.1, "most_high": 4.2, "balanced_most": 1.05}
        ),
        "overflow": pd.DataFrame(
            [
                {"tokens": n, "capacity_factor": f, "dropped": 0.2 / f**2, "uniform": 0.05 / f**3}
                for n in (64, 512)
                for f in (1, 1.5, 2)
            ]
        ).assign(low=0.01, high=0.22, uniform_low=0.0, uniform_high=0.06),
        "experts": pd.DataFrame(
            [
                {"layer": i, "expert": e, "share": 1 / 16, "p_family": 0.01 * e, "category": kinds[e % 4]}
                | {f"share_{k}": rng.uniform(0.01, 0.2) for k in kinds}
                for i, e in cells
            ]
        ),
        "expert_tokens": pd.DataFrame(
            [
                {"layer": i, "expert": e, "token": t, "rate": 0.9 - 0.1 * j, "lift": 8 - j, "low": 6 - j, "high": 10 - j}
                for i, e in shown
                for j, t in enumerate((" the", "\n\n", "$x$", "    return", name.format("_token"), "…"))
            ]
        ),
        "expert_categories": pd.DataFrame(
            [{"layer": i, "expert": e, "category": k, "lift": 1 + (j + i) % 4} for i, e in shown for j, k in enumerate(kinds)]
        ),
    }


def _distill(name: str) -> dict[str, pd.DataFrame]:
    families = [("dense", ""), ("moe", "top-k sigmoid"), ("moe", "expert choice")]
    students = [(kind, router, active) for kind, router in families for active in (16, 32, 64, 128)]
    data = ("activations", "gaussian", "shuffled")
    summary = [
        {"data": d, "kind": kind, "router": router, "active_neurons": a, "fvu": 10 / a, "low": 9 / a, "high": 11 / a}
        | {"multiply_adds": 3000 * a, "bytes_large_batch": 50 * a}
        for d in data
        for kind, router, a in students
    ]
    chosen = [
        {"data": d, "student": f"{kind} {router} {a}", "kind": kind, "router": router, "active_neurons": a}
        | {"lr": 0.001, "seed": 0, "chosen": True}
        for d in data[:2]
        for kind, router, a in students
    ]
    return {
        "summary": pd.DataFrame(summary),
        "ratio": pd.DataFrame(
            [
                {k: s[k] for k in ("data", "kind", "router", "active_neurons")} | {"ratio": 1.1, "low": 1.0, "high": 1.2}
                for s in summary
                if s["kind"] == "moe"
            ]
        ),
        "baselines": pd.DataFrame([{"data": d, "baseline": "linear", "fvu": 0.5} for d in data]),
        "students": pd.DataFrame(chosen),
        "curves": pd.DataFrame(
            [
                {k: s[k] for k in ("data", "student", "lr", "seed")} | {"step": step, "validation": 1 / (1 + step)}
                for s in chosen
                for step in range(5)
            ]
        ),
        "load": pd.DataFrame(
            [
                {"student": name.format(f"student {i}"), "rank": rank, "load": 0.5 / (rank + 1 + i)}
                for i in range(3)
                for rank in range(64)
            ]
        ),
        "splice": pd.DataFrame(
            [
                {"layer_is": layer, "loss": 3.2 + 0.1 * i}
                for i, layer in enumerate(("original", "mean output", *(name.format(f"student {j}") for j in range(3))))
            ]
        ),
    }


def _convert(name: str) -> dict[str, pd.DataFrame]:
    kinds = ("converted", "random", "static", "tuned", "random tuned", "static tuned")
    rows = [
        {"kind": k, "share": s, "perplexity": 20 + 30 * (1 - s), "rise": 0.5 + 1.5 * (1 - s), "kl": 1.1 - s}
        for k in kinds
        for s in (0.25, 0.5, 0.75)
    ]
    speed = [
        {"runner": r, "workload": name.format(w), "speedup": 1.3, "ceiling": 1.8}
        for r in ("moescope", "grouped_mm")
        for w in ("decode, batch 1", "decode, batch 16", "prefill")
    ]
    return {"frontier": pd.DataFrame(rows), "speed": pd.DataFrame(speed)}


def _chosen() -> pd.DataFrame:
    ways = ("planes", "oracle", "gate-first", "cats", "teal", "rotated", "static", "random", "another token")
    plain = {"8-bit": 0.53, "5-bit": 0.34, "4/5-bit": 0.3, "4-bit": 0.28, "file": 0.31}
    reads = [(method, 0.15 + 0.4 * s, 0.3 * (1 - s) ** 2) for method in ways for s in (0.25, 0.5, 0.75)]
    reads += [(method, share, 0.01 / share - 0.02) for method, share in plain.items()]
    reads.append(("original", 1.0, 0.0))
    table = pd.DataFrame(
        [{"method": m, "bytes": b, "rise": r, "low": r - 0.01, "high": r + 0.01, "kl": abs(r) / 2} for m, b, r in reads]
    )
    table["share"] = table["bytes"]
    clock = {"original": 0.5, "8-bit": 1.0, "4-bit": 1.8}
    table["over_8_bits"] = [clock.get(m, 1.6 - b if m == "planes" else np.nan) for m, b, _ in reads]
    for end, by in (("low", -0.03), ("high", 0.03)):
        table[f"over_8_bits_{end}"] = table["over_8_bits"] + by
    return table


def _exit(name: str) -> dict[str, pd.DataFrame]:
    rows = [
        {"task": name.format("certainty"), "curve": c, "share": s, "time": s + 0.1, "accuracy": 0.6 + 0.3 * s}
        | {"low": 0.55 + 0.3 * s, "high": 0.65 + 0.3 * s, "calibrated": c == "threshold" and s == 0.5}
        for c in ("threshold", "fixed depth", "circuit per depth")
        for s in (0.25, 0.5, 0.75, 1.0)
    ]
    cue = {"task": name.format("certainty"), "cue": name.format("bag of words"), "accuracy": 0.58}
    return {"frontier": pd.DataFrame(rows), "surface": pd.DataFrame([cue])}


def _effects(kinds: list[str], name: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"steering": name.format(s), "match": "overall", "category": k, "target": j == 0, "effect": 0.1 * j}
            | {"low": 0.1 * j - 0.05, "high": 0.1 * j + 0.05, "random_mean": 0.0, "random_low": -0.1, "random_high": 0.1}
            for s in ("ban three", "route like code", "clamp")
            for j, k in enumerate(kinds)
        ]
    )


def _pruning(name: str) -> pd.DataFrame:
    kinds = ("reap", "frequency", "norm", "mass", name.format("mean output"), "8-bit", "4-bit", "random")
    return pd.DataFrame(
        [
            {"criterion": c, "ratio": r, "bytes": 1 - r, "effect": r, "low": r - 0.1, "high": r + 0.1}
            for c in kinds
            for r in (0.125, 0.25, 0.5)
        ]
    )


def _domains(name: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"criterion": "reap", "ratio": r, "category": name.format(c), "chose": c == "code"}
            | {"effect": r, "low": r - 0.1, "high": r + 0.1}
            for c in ("code", "math", "story")
            for r in (0.125, 0.25, 0.5)
        ]
    )


def _robustness(name: str, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    changes = [
        {"change": name.format(c)}
        | {f"{what}{end}": 0.3 + by for what in ("relative", "flips") for end, by in (("", 0), ("_low", -0.1), ("_high", 0.1))}
        for c in ("identity", "typo", "paraphrase", "other language")
    ]
    attack = {c: rng.normal(2 - i, 1, 40) for i, c in enumerate(("margin", "one_random", "best_random", "search"))}
    monitors = [
        {"monitor": m, "misses": 0.05, "misses_low": 0.02, "misses_high": 0.1, "alarms": 0.1 * i, "alarms_low": 0.08 * i}
        | {"alarms_high": 0.15 * i, "second_stage": 0.3, "risk": 0.1}
        for i, m in enumerate(("cascade", "first stage alone", "whole model alone", "bag of words"))
    ]
    return {"changes": pd.DataFrame(changes), "attack": pd.DataFrame(attack), "monitor": pd.DataFrame(monitors)}


def _layer_pairs(n: int, rng: np.random.Generator) -> pd.DataFrame:
    return pd.DataFrame([{"layer_a": a, "layer_b": b, "rho": rng.uniform()} for a in range(n) for b in range(n)])
