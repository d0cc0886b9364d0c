"""What a distillation study says, each statement beside its null."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from moescope.stats import benjamini_hochberg
from moescope.studies.distill import published
from moescope.studies.distill.accounting import per_neuron, spec_cost
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.students import LayerShape
from moescope.study.verdicts import beyond_chance, significant
from moescope.types import Claim, Verdict

ACTIVATIONS = "activations"
_MANY_DEAD = 0.3  # of all experts


def summary_table(students: pd.DataFrame) -> pd.DataFrame:
    """Test FVU of each student over its seeds: mean and a 95 % t interval on the logarithm (NaN with one seed)."""
    rows = []
    chosen = students[students["chosen"]]
    for (data, name), part in chosen.groupby(["data", "student"], sort=False):
        low, high = log_interval(part["fvu"].to_numpy())
        first = part.iloc[0]
        rows.append(
            {
                "data": data,
                "student": name,
                "kind": first["kind"],
                "router": first["router"],
                "active_neurons": int(first["active_neurons"]),
                "fvu": float(np.exp(np.log(part["fvu"]).mean())),
                "low": low,
                "high": high,
                "seeds": len(part),
                "lr": float(first["lr"]),
                "multiply_adds": int(first["multiply_adds"]),
                "router_multiply_adds": int(first["router_multiply_adds"]),
                "bytes_batch_1": int(first["bytes_batch_1"]),
                "bytes_large_batch": float(part["bytes_large_batch"].mean()),
                "dead": float(part["dead"].mean()),
                "load_entropy": float(part["load_entropy"].mean()),
            }
        )
    return pd.DataFrame(rows)


def ratio_table(students: pd.DataFrame) -> pd.DataFrame:
    """FVU of the dense student over that of each expert student with as many active neurons, seeds paired.

    ``ratio`` is the geometric mean, with a 95 % t interval on the logarithm; ``logs`` the paired log ratios themselves.
    """
    rows = []
    chosen = students[students["chosen"]]
    for (data, name), part in chosen[chosen["kind"] != "dense"].groupby(["data", "student"], sort=False):
        neurons = part["active_neurons"].iloc[0]
        same = chosen[(chosen["data"] == data) & (chosen["kind"] == "dense") & (chosen["active_neurons"] == neurons)]
        both = part.set_index("seed")["fvu"].to_frame("moe").join(same.set_index("seed")["fvu"].rename("dense"), how="inner")
        if both.empty:
            continue
        logs = np.log(both["dense"] / both["moe"]).to_numpy()
        low, high = log_interval(np.exp(logs))
        rows.append(
            {
                "data": data,
                "student": name,
                "kind": part["kind"].iloc[0],
                "router": part["router"].iloc[0],
                "active_neurons": int(neurons),
                "ratio": float(np.exp(logs.mean())),
                "low": low,
                "high": high,
                "logs": logs.tolist(),
            }
        )
    columns = ["data", "student", "kind", "router", "active_neurons", "ratio", "low", "high", "logs"]
    return pd.DataFrame(rows, columns=columns)


def log_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """t interval of the geometric mean; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    logs = np.log(values)
    half = stats.t.ppf(0.5 + level / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half))


def distill_claims(
    tables: dict[str, pd.DataFrame], settings: DistillSettings, shape: LayerShape, width: int | None, model: str
) -> list[Claim]:
    """Every claim of the study."""
    claims: list[Claim] = []
    ratio, summary = tables["ratio"], tables["summary"]
    for _, found in ratio[ratio["data"] == ACTIVATIONS].iterrows():
        here = summary[(summary["data"] == ACTIVATIONS) & (summary["student"] == found["student"])]
        dead = float(here["dead"].iloc[0]) if "dead" in here and len(here) else 0.0
        claims.append(_ratio_claim(found, ratio, model, dead))
    for row in ratio[ratio["data"] == "gaussian"].itertuples():
        expected = published.mean_ratio("gaussian") if row.active_neurons == published.RATIO_ACTIVE else None
        claims.append(
            Claim(
                f"FVU of dense / {row.student}, on Gaussian inputs",
                row.ratio,
                published=expected,
                interval=_interval(row.low, row.high),
                null=1.0,
                note="the control: 1 means that experts gain nothing at equal active neurons",
            )
        )
    claims += _baseline_claims(tables, summary)
    claims += _cost_claims(summary, settings, shape, width)
    if "splice" in tables:
        claims += _splice_claims(tables["splice"])
    claims += _edge_claims(tables["students"])
    diverged = tables["students"][tables["students"]["status"].str.startswith("diverged")]
    if len(diverged):
        where = ", ".join(f"{r.student} at lr {r.lr:g} on {r.data}" for r in diverged.head(3).itertuples())
        claims.append(Claim("training runs that diverged", len(diverged), note=f"stopped and left out: {where}"))
    return claims


def _edge_claims(students: pd.DataFrame) -> list[Claim]:
    """Students whose learning rate is the least or the largest that was tried: a better one may lie beyond."""
    tried = students.groupby(["data", "student"])["lr"].agg(["min", "max", "nunique"])
    edge = []
    for (data, name), part in students[students["chosen"]].groupby(["data", "student"], sort=False):
        low, high, n = tried.loc[(data, name)]
        if n > 1 and part["lr"].iloc[0] in (low, high):
            edge.append(f"{name} on {data} (lr {part['lr'].iloc[0]:g})")
    if not edge:
        return []
    more = f" and {len(edge) - 3} more" if len(edge) > 3 else ""
    note = f"{', '.join(edge[:3])}{more}; try rates beyond"
    return [Claim("students whose learning rate lies at the edge of those tried", len(edge), note=note)]


def _ratio_claim(row: pd.Series, ratio: pd.DataFrame, model: str, dead: float) -> Claim:
    name, neurons = row["student"], row["active_neurons"]
    own = np.asarray(row["logs"])
    control = ratio[(ratio["data"] == "gaussian") & (ratio["student"] == name)]
    expected = published.mean_ratio("activations") if neurons == published.RATIO_ACTIVE else None
    null = p = None
    verdict: Verdict = "measured"
    note = "no Gaussian control was run"
    if len(control):
        other = np.asarray(control["logs"].iloc[0])
        null = float(control["ratio"].iloc[0])
        if len(own) > 1 and len(other) > 1:
            p = float(stats.ttest_ind(own, other, equal_var=False, alternative="greater").pvalue)
            holds = significant(p) and own.mean() > 0
            verdict = "reproduced" if holds else "not reproduced"
            more = "more" if holds else "no more"
            note = f"experts gain {more} on activations than on Gaussian inputs of the same covariance (Welch over seeds)"
            if holds and expected is not None and np.exp(own.mean()) < 0.8 * expected:
                note += "; the contrast is there, its size is not: the published runs train far longer"
        else:
            note = "one seed: no interval and no test"
    if dead > _MANY_DEAD:
        note += f"; {dead:.0%} of the experts are dead, which a lower learning rate or revive may mend"
    return Claim(
        f"FVU of dense / {name}, on activations",
        float(row["ratio"]),
        published=expected,
        interval=_interval(row["low"], row["high"]),
        null=null,
        p=p,
        verdict=verdict,
        note=note,
        details={"model": model},
    )


def _baseline_claims(tables: dict[str, pd.DataFrame], summary: pd.DataFrame) -> list[Claim]:
    rows = tables["baselines"][tables["baselines"]["data"] == ACTIVATIONS]
    moe = summary[(summary["data"] == ACTIVATIONS) & (summary["kind"] != "dense")]
    claims = []
    for row in rows.itertuples():
        beaten = moe[moe["fvu"] >= row.fvu]
        trivial = len(moe) > 0 and len(beaten) > 0
        claims.append(
            Claim(
                f"FVU of {row.baseline} (a trivial predictor)",
                row.fvu,
                verdict="explained by a trivial cue" if trivial else "measured",
                note=(
                    f"it does as well as {', '.join(beaten['student'])}" if trivial else "every expert student explains more"
                ),
            )
        )
    return claims


def _cost_claims(summary: pd.DataFrame, settings: DistillSettings, shape: LayerShape, width: int | None) -> list[Claim]:
    claims = []
    here = summary[summary["data"] == ACTIVATIONS]
    dense = here[here["kind"] == "dense"]
    teacher = None if width is None else width * per_neuron(shape, shape.glu)
    for name, spec in settings.students().items():
        if spec.kind == "dense" or name not in set(here["student"]):
            continue
        row = here[here["student"] == name].iloc[0]
        total, router, _ = spec_cost(spec, shape)
        if teacher is not None:
            claims.append(
                Claim(
                    f"multiply-adds of {name}, over the layer's own",
                    total / teacher,
                    note=f"{router / total:.0%} of them are the router's; above 1 the student saves nothing",
                )
            )
        rivals = dense[(dense["multiply_adds"] <= total) & (dense["multiply_adds"] > 0.9 * total)]
        if len(rivals):
            rival = rivals.loc[rivals["multiply_adds"].idxmax()]
            wins = float(row["fvu"]) < float(rival["fvu"])
            claims.append(
                Claim(
                    f"FVU of dense at equal cost / {name}",
                    float(rival["fvu"] / row["fvu"]),
                    published="below 1",
                    verdict="not reproduced" if wins else "reproduced",
                    note=f"against {rival['student']}: "
                    + ("the experts pay, router included" if wins else "structure, not savings"),
                )
            )
    return claims


def _splice_claims(table: pd.DataFrame) -> list[Claim]:
    loss = table.set_index("layer_is")["loss"]
    return [
        Claim(
            f"loss added by {name} in the layer's place",
            float(loss[name] - loss["original"]),
            null=float(loss["mean output"] - loss["original"]),
            note="nats per token; null: its mean output in the layer's place",
        )
        for name in loss.index
        if name not in ("original", "mean output")
    ]


def category_claim(name: str, table: pd.DataFrame) -> Claim:
    """How many of the experts in ``table`` prefer a category."""
    p = table["category_p"].to_numpy(dtype=float)
    tested = ~np.isnan(p)
    found = sum(map(significant, benjamini_hochberg(p[tested]))) if tested.any() else 0
    return Claim(
        f"experts of {name} that prefer a category of text",
        f"{found} of {int(tested.sum())}",
        verdict="measured" if found else "explained by chance",
        note="of the most used; labels shuffled among documents, false discovery rate 5 %",
    )


def overlap_claim(name: str, row: dict[str, object]) -> Claim:
    """How many of a circuit's neurons a student's experts sit at."""
    task, here, p = row["task"], row["circuit_neurons"], float(row["p"])  # type: ignore[arg-type]
    if not here:
        note = "the circuit has no mlp_act neuron in this layer: nothing to compare"
        return Claim(f"neurons of the {task} circuit that experts of {name} sit at", 0, note=note)
    return Claim(
        f"neurons of the {task} circuit that experts of {name} sit at",
        int(row["overlap"]),  # type: ignore[call-overload]
        null=float(row["expected"]),  # type: ignore[arg-type]
        p=p,
        verdict=beyond_chance(p),
        note=f"of {here} in this layer, among {row['expert_neurons']} nearest neurons of experts; null: random sets",
    )


def _interval(low: float, high: float) -> tuple[float, float] | None:
    return None if math.isnan(low) else (low, high)
