"""A made-up but plausible circuits result, every table of the contract filled, to develop and test the report against."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.study.result import StudyResult
from moescope.types import Circuit, Claim, Control, Neuron, Published, Site

KS = (1, 2, 3, 5, 10, 20, 50, 100)
CLASSES = {
    "certainty": ("truthful", "hallucinated"),
    "sentiment": ("negative", "positive"),
    "topic": ("world", "sport", "tech"),
}


def synthetic_result(
    tasks: tuple[str, ...] = ("certainty", "sentiment"),
    *,
    model: str = "dense-tiny",
    n_layers: int = 6,
    width: int = 256,
    n: int = 2000,
    seed: int = 0,
    optional: bool = True,
) -> StudyResult:
    """A result with the tables of a circuits study; ``optional`` adds ablation, keeping, dynamics, language and task map."""
    rng = np.random.default_rng(seed)
    total = n_layers * width
    best = {t: 0.62 + 0.3 * rng.random() for t in tasks}
    classes = {t: CLASSES.get(t, ("no", "yes")) for t in tasks}
    neurons = pd.concat([_neurons(t, rng, n_layers, width) for t in tasks], ignore_index=True)
    tables = {
        "accuracy": _accuracy(tasks, rng, best, n),
        "neurons": neurons,
        **_per_class(tasks, classes, neurons, rng, n),
        "cross_task": _cross_task(tasks, rng, best),
        "overlap": _overlap(tasks, rng, total),
        "depth": _depth(tasks, best, n_layers, rng),
        "layers": _layers(tasks, neurons, n_layers, rng),
        "controls": _controls(tasks, best, rng),
        "pc1": pd.DataFrame(
            [
                dict(
                    task=t,
                    **{"class": c},
                    mean=(1 if i else -1) * 2.1,
                    sd=1.3,
                    distance=4.2,
                    explained=0.21,
                    null_distance=0.4,
                    p=0.001,
                )
                for t in tasks
                for i, c in enumerate(classes[t])
            ]
        ),
        "columns": pd.DataFrame(
            [
                {
                    "task": t,
                    "neuron": int(g),
                    "n_layers": len(f),
                    "layers": sorted(f.layer.tolist()),
                    "clusters": 4,
                    "distinct_coordinates": 6,
                }
                for t in tasks
                for g, f in neurons[(neurons.task == t) & (neurons["rank"] <= 10)].groupby("neuron")
            ]
        ),
        "depth_range": pd.DataFrame(
            [
                {
                    "task": t,
                    "k": 10,
                    "first_layer": 0,
                    "last_layer": n_layers - 1,
                    "mean_layer": n_layers * 0.4,
                    "random_low": n_layers * 0.25,
                    "random_high": n_layers * 0.6,
                }
                for t in tasks
            ]
        ),
        "sigma_compare": pd.DataFrame(
            [
                {"task": t, "sigma": s, "k": k, "accuracy": best[t] - 0.02 + 0.01 * i, "top1": "resid:3/17"}
                for t in tasks
                for i, s in enumerate(("total", "pooled", "negative"))
                for k in (1, 10)
            ]
        ),
    }
    if optional:
        tables |= _optional(tasks, best, rng)
    circuits = {
        t: Circuit(
            t,
            tuple(Neuron(Site("resid", int(r.layer)), int(r.neuron)) for r in f.head(10).itertuples()),
            tuple(float(d) for d in f.divergence.head(10)),
        )
        for t, f in neurons.groupby("task", sort=False)
    }
    meta = {
        "title": "Task circuits",
        "model": {"name": model, "layers": n_layers, "width": width, "fingerprint": "6c1f09aa53d2e7b4", "dtype": "float32"},
        "tasks": [
            {"name": t, "source": "halueval_qa", "rows": n, "classes": list(classes[t]), "sha256": "ab" * 32} for t in tasks
        ],
        "seed": seed,
        "command": f"moescope circuits {model} " + " ".join(f"--task {t}=preset" for t in tasks),
        "versions": {"moescope": "0.1.0", "torch": "2.13.0", "numpy": "2.4"},
        "git_revision": "4c44a52",
    }
    return StudyResult("circuits", meta, _claims(best), circuits, tables)


def _neurons(task: str, rng: np.random.Generator, n_layers: int, width: int) -> pd.DataFrame:
    columns = rng.choice(width, 3, replace=False)
    rows = []
    divergence = np.sort(0.35 + 0.9 * rng.gamma(1.2, 0.35, 100))[::-1]
    for rank in range(1, 101):
        neuron = int(columns[rng.integers(3)]) if rng.random() < 0.45 else int(rng.integers(width))
        d = float(divergence[rank - 1])
        rows.append(
            {
                "task": task,
                "rank": rank,
                "site": "resid",
                "layer": int(rng.integers(n_layers)),
                "neuron": neuron,
                "divergence": d,
                "sigma_total": d * 0.93,
                "sigma_pooled": d,
                "sigma_negative": d * 1.04,
                "p_family": 0.001 if d > 0.62 else 0.3,
                "threshold_5pct": 0.62,
                "massive": bool(rank % 31 == 0),
                "fold_frequency": float(rng.integers(2, 6)) / 5,
            }
        )
    return pd.DataFrame(rows).drop_duplicates(["layer", "neuron"], ignore_index=True)


def _per_class(tasks, classes, neurons, rng, n) -> dict[str, pd.DataFrame]:  # type: ignore[no-untyped-def]
    stats, values, points = [], [], []
    for t in tasks:
        for r in neurons[(neurons.task == t) & (neurons["rank"] <= 10)].itertuples():
            for i, c in enumerate(classes[t]):
                mean = (i - 0.5) * r.divergence * 0.04
                key = {"task": t, "rank": r.rank, "layer": r.layer, "neuron": r.neuron, "class": c}
                stats.append({**key, "mean": mean, "sd": 0.04, "n": n // len(classes[t])})
                values += [{**key, "value": v} for v in rng.normal(mean, 0.04, 200)]
        for i, c in enumerate(classes[t]):
            xy = rng.multivariate_normal([(i - 0.5) * 4, i % 2], [[2, 0.4], [0.4, 1]], 200)
            points += [{"task": t, "class": c, "pc1": x, "pc2": y} for x, y in xy]
    return {"neuron_classes": pd.DataFrame(stats), "neuron_values": pd.DataFrame(values), "projection": pd.DataFrame(points)}


def _accuracy(tasks, rng, best, n) -> pd.DataFrame:  # type: ignore[no-untyped-def]
    rows = []
    for t in tasks:
        for k in KS:
            for classifier in ("lda", "logistic"):
                for selection, bonus in (("nested", 0.0), ("global", 0.008)):
                    a = best[t] - 0.12 * np.exp(-k / 6) + bonus + (0.004 if classifier == "logistic" else 0)
                    rows.append(
                        {
                            "task": t,
                            "k": k,
                            "classifier": classifier,
                            "selection": selection,
                            "accuracy": a,
                            "low": a - 0.018,
                            "high": a + 0.017,
                            "auroc": min(1, a + 0.06),
                            "coverage": 0.1 + 0.5 * (1 - np.exp(-k / 15)),
                            "selective_accuracy": min(1, a + 0.09),
                            "n": n,
                        }
                    )
    return pd.DataFrame(rows)


def _cross_task(tasks, rng, best) -> pd.DataFrame:  # type: ignore[no-untyped-def]
    rows = []
    for s in tasks:
        for t in tasks:
            own = best[t]
            for method, v in {
                "transfer_accuracy": own if s == t else 0.5 + rng.normal(0, 0.05),
                "transfer_auroc": own + 0.05 if s == t else 0.55,
                "refit": own if s == t else 0.5 + 0.7 * (own - 0.5),
                "refit_random": 0.5 + 0.5 * (own - 0.5),
                "refit_layer_matched": 0.5 + 0.6 * (own - 0.5),
                "refit_top_variance": 0.5 + 0.4 * (own - 0.5),
            }.items():
                rows.append({"source": s, "target": t, "method": method, "value": v, "low": v - 0.02, "high": v + 0.02})
    return pd.DataFrame(rows)


def _overlap(tasks, rng, total) -> pd.DataFrame:  # type: ignore[no-untyped-def]
    return pd.DataFrame(
        [
            {
                "task_a": a,
                "task_b": b,
                "k": k,
                "overlap": int(k * 0.06 * rng.random() * np.log1p(k)),
                "expected": k * k / total,
                "p": 0.4,
                "split_half_a": 0.62 * k,
                "split_half_b": 0.5 * k,
            }
            for i, a in enumerate(tasks)
            for b in tasks[i + 1 :]
            for k in (*KS, 200, 500)
        ],
        columns=["task_a", "task_b", "k", "overlap", "expected", "p", "split_half_a", "split_half_b"],
    )


def _depth(tasks, best, n_layers, rng) -> pd.DataFrame:  # type: ignore[no-untyped-def]
    rows = []
    for t in tasks:
        for layer in range(n_layers):
            x = (layer + 1) / n_layers
            for curve, v in {
                "circuit_reselected": best[t] - 0.14 * np.exp(-3 * x),
                "full_probe": best[t] + 0.05 - 0.1 * np.exp(-4 * x),
                "fixed_circuit": best[t],
                "surface": best[t] - 0.03,
            }.items():
                rows.append(
                    {
                        "task": t,
                        "layer": layer,
                        "fraction": x,
                        "curve": curve,
                        "accuracy": v,
                        "low": v - 0.015,
                        "high": v + 0.015,
                    }
                )
    return pd.DataFrame(rows)


def _layers(tasks, neurons, n_layers, rng) -> pd.DataFrame:  # type: ignore[no-untyped-def]
    rows = []
    for t in tasks:
        f = neurons[neurons.task == t]
        for layer in range(n_layers):
            at = f[f.layer == layer]
            rows.append(
                {
                    "task": t,
                    "layer": layer,
                    "count_top10": int((at["rank"] <= 10).sum()),
                    "count_top100": len(at),
                    "max_divergence": float(at.divergence.max()) if len(at) else 0.3,
                    "mean_divergence": 0.12 + 0.02 * layer,
                    "q99": 0.4 + 0.03 * layer,
                }
            )
    return pd.DataFrame(rows)


def _controls(tasks, best, rng) -> pd.DataFrame:  # type: ignore[no-untyped-def]
    gaps = {
        "circuit": 0,
        "circuit_global": 0.008,
        "full_layer_probe": 0.05,
        "embedding_layer": -0.02,
        "surface: length in characters": -0.09,
        "surface: ends with punctuation": -0.11,
        "surface: final character": -0.06,
        "surface: final token": -0.05,
        "surface: bag of words": 0.02,
        "random_circuit": -0.12,
        "layer_matched_circuit": -0.1,
        "random_twin_circuit": -0.13,
        "random_twin_probe": -0.04,
        "rotated_basis": -0.01,
        "without_massive": -0.002,
        "permuted_labels": None,
        "control_task": -0.15,
        "majority class": None,
        "matched_subset": -0.1,
        "fixed_template": -0.05,
    }
    rows = []
    for t in tasks:
        for control, gap in gaps.items():
            a = 0.505 if gap is None else max(0.5, best[t] + gap)
            rows.append({"task": t, "control": control, "accuracy": a, "low": a - 0.02, "high": a + 0.02, "note": ""})
    return pd.DataFrame(rows)


def _optional(tasks, best, rng) -> dict[str, pd.DataFrame]:  # type: ignore[no-untyped-def]
    ablation = [
        {
            "task": t,
            "k": k,
            "mode": "mean",
            "target": target,
            "baseline": base,
            "effect": sign * scale * np.log1p(k) / 5,
            "random_mean": sign * scale * 0.05,
            "random_low": sign * scale * 0.05 - 0.02,
            "random_high": sign * scale * 0.05 + 0.02,
            "p": 0.01,
            "n_random": 100,
        }
        for t in tasks
        for k in KS
        for target, base, sign, scale in (
            ("probe_accuracy", best[t], -1, 0.2),
            ("answer_logodds", 1.4, -1, 0.8),
            ("wikitext_loss", 3.9, 1, 0.15),
        )
    ]
    erasure = [
        {
            "task": t,
            "layer": layer,
            "target": target,
            "baseline": best[t],
            "effect": -0.04 * (layer + 1),
            "random_mean": -0.005,
            "random_low": -0.02,
            "random_high": 0.01,
            "p": 0.3 if layer == 0 else 0.05,
            "n_random": 20,
        }
        for t in tasks
        for layer in range(6)
        for target in ("probe_accuracy", "answer_logodds")
    ]
    dynamics = [
        {
            "checkpoint": f"step{s}",
            "step": s,
            "task": t,
            "accuracy": best[t] - 0.2 * np.exp(-s / 400),
            "low": best[t] - 0.2 * np.exp(-s / 400) - 0.02,
            "high": best[t] - 0.2 * np.exp(-s / 400) + 0.02,
            "probe_accuracy": best[t] + 0.04 - 0.15 * np.exp(-s / 200),
            "max_divergence": 1.4 - np.exp(-s / 300),
            "overlap_with_last": min(10, s // 200),
        }
        for t in tasks
        for s in (0, 50, 100, 250, 500, 1000, 2000, 3000)
    ]
    scaling = [
        {
            "model": f"m{i}",
            "parameters": n,
            "task": t,
            "balanced": best[t] - 0.1 + 0.03 * i,
            "depth": float("nan") if i == 0 else 0.5 - 0.05 * i,
            "self_overlap": 0.1 + 0.1 * i,
            "cue": 0.7,
            "twin": 0.6,
        }
        for t in tasks
        for i, n in enumerate((4_000_000, 100_000_000, 1_000_000_000))
    ]
    trends = [
        {"task": t, "quantity": q, "slope": v}
        for t in tasks
        for q, v in (("accuracy", 0.025), ("depth", -0.05), ("self_overlap", 0.08))
    ]
    similarity = [
        {"a": a, "b": b, "measure": m, "value": v, "chance": c, "p": 0.2 if m == "probe" else 0.01}
        for i, a in enumerate(tasks)
        for b in tasks[i + 1 :]
        for m, v, c in (("circuit", 0.08, 0.0), ("probe", 0.12, 0.06))
    ]
    language = [
        {
            "task": tasks[0],
            "train_language": a,
            "test_language": b,
            "accuracy": 0.8 if a == b else 0.66,
            "low": 0.6,
            "high": 0.85,
        }
        for a in ("en", "de", "fr")
        for b in ("en", "de", "fr")
    ]
    rise = {"circuit": 0.5, "top_variance": 1.5, "attribution": 0.4, "random": 1.0}
    kept = [
        {
            "task": t,
            "mode": mode,
            "target": target,
            "order": order,
            "k": k,
            "share": k / 576,
            "faithfulness": f,
            "low": f - 0.05,
            "high": f + 0.05,
        }
        for t in tasks
        for mode in ("mean", "resample")
        for target in ("probe_accuracy", "answer_logodds", "answer_accuracy")
        for order, power in rise.items()
        for k in (1, 2, 5, 10, 20, 50, 100, 200, 500)
        for f in [(k / 576) ** power]
    ]
    return {
        "ablation": pd.DataFrame(ablation),
        "kept": pd.DataFrame(kept),
        **_related(tasks),
        "erasure": pd.DataFrame(erasure),
        "dynamics": pd.DataFrame(dynamics),
        "scaling": pd.DataFrame(scaling),
        "scaling_trends": pd.DataFrame(trends),
        "task_map": pd.DataFrame(similarity),
        "language": pd.DataFrame(language),
    }


def _related(tasks) -> dict[str, pd.DataFrame]:  # type: ignore[no-untyped-def]
    """Likeness of tasks, and a further one from few labels."""
    names = [*tasks, *(f"task{i}" for i in range(len(tasks), 5))]
    pairs = [
        {
            "task_a": a,
            "task_b": b,
            "k": 100,
            **{"shared": 4.0, "own_a": 12.0, "own_b": 14.0, "chance": 2.0, "transfer": 0.1, "same_texts": 0},
            "circuit": float("nan") if j == 4 else 0.9 / (1 + j - i),
            **{"vocabulary": 0.2 + 0.1 * (i + j) % 0.7, "class_words": 0.1, "surface": -1.0 - j},
        }
        for i, a in enumerate(names) for j, b in enumerate(names) if i < j
    ]  # fmt: skip
    labels = (8, 16, 32, 64, 128, 256)
    slopes = {"circuits": 0.06, "random": 0.02, "top_variance": 0.03, "full_probe": 0.05}
    gaps = {"gap": 0.1, "gap_low": 0.06, "gap_high": 0.14, "p": 0.001}
    curves = [
        {"task": "reviews of films", "method": m, "columns": 40, "labels": n, "value": 0.5 + slope * (i + 1)}
        | {"low": 0.47 + slope * (i + 1), "high": 0.53 + slope * (i + 1), **gaps}
        for m, slope in slopes.items() for i, n in enumerate(labels)
    ]  # fmt: skip
    areas = [
        {"task": "reviews of films", "method": m, "columns": 40, "value": 0.5 + 3 * slope, "low": 0.6, "high": 0.7, **gaps}
        | {"needed": 64.0, "needed_low": 40.0, "needed_high": 90.0, "target": 0.8, "most_labels": 256, "chance": 0.5}
        | {"sources": ", ".join(tasks), "n_draws": 20, "n_random": 100, "n": 600}
        for m, slope in slopes.items()
    ]
    edits = [
        {"edited": a, "read": b, "cost": cost, "low": cost - 0.1, "high": cost + 0.1, "random": 0.02, "random_low": -0.03}
        | {"random_high": 0.08, **gaps, "n_random": 199, "n": 150, "clean": 2.0, "clean_low": 1.5, "clean_high": 2.5}
        for a, b, cost in (
            ("tone", "tone", 0.5), ("tone", "certainty", 0.1), ("certainty", "tone", 0.05), ("certainty", "certainty", 0.4),
            ("contrast", "contrast", 0.37),
        )
    ]  # fmt: skip
    rivals = ("log-probability and entropy", "length of question and answer", "its own words", "difficulty", "all of these")
    beyond = [
        {"task": name, "rival": rival, "at": "question", "rival_auroc": 0.6 + 0.05 * i, "rival_low": 0.55, "rival_high": 0.85}
        | {"circuit_auroc": 0.8, "both_auroc": 0.7 + 0.05 * i, "gain": 0.1, "gain_low": 0.06, "gain_high": 0.14, "p": 0.01}
        | {"n_draws": 99, "k": 10, "n": 240}
        for name in tasks for i, rival in enumerate(rivals)
    ]  # fmt: skip
    made = {"beyond_answers": beyond, "similarity": pairs, "few_shot": curves, "few_shot_area": areas, "crossed_edits": edits}
    return {name: pd.DataFrame(rows) for name, rows in made.items()}


def _claims(best) -> tuple[Claim, ...]:  # type: ignore[no-untyped-def]
    first = next(iter(best))
    return (
        Claim(
            "Ten neurons decide certainty",
            best[first],
            id="H2",
            published=Published(0.967, "Choi 2025, Table 2"),
            interval=(best[first] - 0.018, best[first] + 0.017),
            control=Control("bag of words", best[first]),
            p=0.001,
            p_adjusted=0.004,
            family=first,
            outcome="holds",
            explanation="trivial cue",
            words="A bag of words alone scores as much; on the matched subset the circuit falls to chance.",
        ),
        Claim(
            "Top-10 circuits of two tasks are disjoint",
            0,
            id="H1",
            published=Published(0, "Choi 2025, Table 1"),
            control=Control("random sets", 0.065),
            p=0.94,
            outcome="contradicted",
            explanation="chance",
            words="Two random 10-sets of 1,536 coordinates are disjoint with probability 0.94.",
        ),
        Claim(
            "Specialization ratio above 1.5 (certainty)",
            1.52,
            id="H3",
            published=Published("1.7 ± 0.1", "Choi 2025, §4.3"),
            interval=(1.43, 1.61),
            control=Control("twice the own accuracy", 1.5),
            outcome="identity",
            words="2 × native accuracy when the transferred classifier is at 0.5.",
        ),
        Claim(
            "Circuits concentrate in the middle layers",
            "layers 2–4",
            published=Published("layers 8–16", "Choi 2025, §4.4"),
            p=0.013,
            outcome="contradicted",
            words="The top ten spread evenly over depth.",
        ),
        Claim(
            "Two neurons suffice",
            0.71,
            id="H4",
            published=Published(0.977, "Choi 2025, Table 3"),
            interval=(0.69, 0.73),
            control=Control("the best cue", 0.55),
            p=0.001,
            outcome="holds",
            explanation="none found",
            words="Within 0.02 of ten neurons.",
        ),
        Claim(
            "Ablating the circuit lowers probe accuracy",
            -0.043,
            interval=(-0.06, -0.02),
            control=Control("matched random sets", -0.01),
            p=0.0099,
            outcome="inconclusive",
            words="100 random sets matched on layer and norm; a lower bound, since the model may repair itself.",
        ),
        Claim(
            "PC1 class means are opposite",
            -2.1,
            published=Published(-3.504, "Choi 2025, Table 4"),
            outcome="identity",
            words="Follows for any balanced, centred data.",
        ),
    )
