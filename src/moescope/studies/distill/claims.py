"""What a distillation study says of its students, each statement beside what stands against it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from moescope.studies.distill import published
from moescope.studies.distill.accounting import per_neuron, spec_cost
from moescope.studies.distill.comparisons import LogRatio, log_ratio
from moescope.studies.distill.evidence import ACTIVATIONS, GATES, Evidence, interval, judged
from moescope.studies.distill.settings import NO_PADDING
from moescope.studies.distill.students import LayerShape
from moescope.study.verdicts import Case
from moescope.types import Claim, Control

_MANY_DEAD = 0.3  # of all experts
_INPUTS = {
    "gaussian": "Gaussian inputs of the same mean and covariance",
    "kurtosis": "inputs of the same covariance and kurtosis",
    "mixture": "a mixture of Gaussians",
    "shuffled-teacher": "a teacher of shuffled weights",
    "shuffled-outputs": "outputs of other tokens",
    "twin": "the layer of the random model",
    "no-padding-gaussian": "Gaussian inputs of the same mean and covariance, padding left out",
}
# what is compared: the words for it, its Gaussian control, and the controls that are of it
_BASES = {ACTIVATIONS: ("activations", "gaussian"), NO_PADDING: ("activations, padding left out", f"{NO_PADDING}-gaussian")}

Said = list[Case | Claim]


def distill_claims(evidence: Evidence, shape: LayerShape, width: int | None) -> Said:
    """Every claim of the study but those about single experts."""
    ratio = evidence.tables["ratio"]
    claims: Said = []
    for row in ratio[ratio["data"].isin(list(_BASES))].to_dict("records"):
        claims += _pair_claims(evidence, str(row["student"]), str(row["dense"]), int(row["active_neurons"]), str(row["data"]))
    claims += _router_claims(evidence)
    claims.append(
        Claim(
            "k follows the sparsity of the layer's inputs in a dictionary",
            "not measured",
            id="M4",
            outcome="not tested",
            words="needs inputs whose sparsity is known; benchmarks/knee.py plants it",
        )
    )
    claims += _baseline_claims(evidence)
    claims += _cost_claims(evidence, shape, width)
    claims += _splice_claims(evidence.tables.get("splice"))
    return claims + _facts(evidence.tables["students"])


def _pair_claims(evidence: Evidence, experts: str, dense: str, active: int, base: str) -> Said:
    """An expert student and the dense one of as many active neurons: on activations, and against every control of them."""
    gain = evidence.compared(base, dense, experts)
    assert gain is not None
    here, own = _BASES[base]
    margin, family, pair = evidence.margin, f"{experts} / {dense}, {here}", (dense, experts)
    headline = active == published.RATIO_ACTIVE
    dead = float(evidence.of(base)["dead"].get(experts, float("nan")))
    many = f"{dead:.0%} of the experts are dead, which a lower learning rate or revive may mend" if dead > _MANY_DEAD else ""
    left_out = {"shuffled-outputs", NO_PADDING, *(gauss for name, (_, gauss) in _BASES.items() if name != base)}
    names: list[str] = [own] if base != ACTIVATIONS else [name for name in evidence.settings.control if name not in left_out]
    controls: dict[str, LogRatio | None] = {
        name: evidence.compared(name, *pair) for name in names if name in evidence.settings.control
    }
    gaussian = controls.get(own)
    claims: Said = [
        judged(
            Case(
                f"error of {dense} / {experts} on {here}: the experts explain more",
                math.exp(gain.value),
                gain.effect(f"what {dense} explains", margin),
                id="M1",
                published=published.headline("activations") if headline else None,
                interval=interval(gain),
                control=Control(_INPUTS[own], math.exp(gaussian.value)) if gaussian else None,
                gate=evidence.gate(pair, base),
                family=family,
                words=many,
            ),
            gain,
        )
    ]
    for name, found in controls.items():
        if found is None:  # every run diverged there
            continue
        excess = gain - found
        claims.append(
            judged(
                Case(
                    f"error of {dense} / {experts}, on {here} over that on {_INPUTS[name]}: the experts gain more",
                    math.exp(excess.value),
                    excess.effect(f"on {_INPUTS[name]}", margin, kind="chance"),
                    id="M2" if name == own else "",
                    published=published.CONTRAST if headline and name == own else None,
                    interval=interval(excess),
                    control=Control(f"ratio on {_INPUTS[name]}", math.exp(found.value)),
                    gate=evidence.gate(pair, base, name),
                    family=family,
                ),
                excess,
            )
        )
    if gaussian is not None:
        claims.append(
            judged(
                Case(
                    f"error of {dense} / {experts} on {_INPUTS[own]}: the dense student explains as much",
                    math.exp(gaussian.value),
                    (-gaussian).effect(experts, margin, no_worse=True),
                    id="M2",
                    published=published.headline("gaussian") if headline else None,
                    interval=interval(gaussian),
                    gate=evidence.gate(pair, own),
                    family=family,
                ),
                gaussian,
                "blocks of rows",
            )
        )
    if base == ACTIVATIONS and "shuffled-outputs" in evidence.settings.control:
        claims += _unlearnable(evidence, experts)
    return claims


def _unlearnable(evidence: Evidence, student: str) -> Said:
    """On outputs of other tokens the error is the variance, or rows that judge have trained."""
    documents = evidence.tables["documents"]
    here = documents[(documents["data"] == "shuffled-outputs") & (documents["student"] == student)]
    if here.empty:
        return []
    error, vectors = (here.pivot(index="seed", columns="document", values=c).to_numpy(float) for c in ("error", "vectors"))
    found = log_ratio(error, vectors / vectors[0].sum())
    case = Case(
        f"FVU of {student} on {_INPUTS['shuffled-outputs']}: nothing is explained",
        math.exp(found.value),
        found.effect("the outputs' own mean", evidence.margin, no_worse=True),
        interval=interval(found),
        control=Control("the outputs' own mean", 1.0),
    )
    return [judged(case, found)]


def _router_claims(evidence: Evidence) -> Said:
    """Low-rank and product-key routers against full ones, of students that are alike otherwise."""
    specs = {n: s for n, s in evidence.settings.students().items() if s.kind == "moe" and n in evidence.here.index}
    claims: Said = []
    for name, spec in specs.items():
        full = next((n for n, s in specs.items() if s == replace(spec, router="full")), None)
        found = None if full is None or spec.router == "full" else evidence.compared(ACTIVATIONS, full, name)
        if full is None or found is None:
            continue
        low = spec.router == "low-rank"
        for what, no_worse in (("no less", True), ("more", False)):
            case = Case(
                f"error with a full router / with a {spec.router} one, {name}: it explains {what}",
                math.exp(found.value),
                found.effect(full if no_worse else f"what {full} explains", evidence.margin, no_worse=no_worse),
                id="M3" if low else "",
                published=published.routers() if low and spec.active_neurons == published.RATIO_ACTIVE else None,
                interval=interval(found),
                gate=evidence.gate((full, name), ACTIVATIONS),
                family=f"{name} / {full}",
            )
            claims.append(judged(case, found))
    if not any(c.id == "M3" for c in claims):
        claims.append(
            Claim(
                "error with a full router / with a low-rank one: it explains no less",
                "not measured",
                id="M3",
                outcome="not tested",
                words="needs students of both routers: full and low-rank",
            )
        )
    return claims


def _baseline_claims(evidence: Evidence) -> Said:
    rows = evidence.tables["baselines"][evidence.tables["baselines"]["data"] == ACTIVATIONS]
    claims: Said = []
    for row in rows.itertuples():
        losers = evidence.here[evidence.here["worst"] >= row.fvu].index
        gate = "a gate for every verdict on students" if row.baseline in GATES else "no gate, beside them only"
        beaten = f"at least one run of {', '.join(losers)} leaves as much" if len(losers) else "every student leaves less"
        words = f"{beaten}; {gate}, which takes the figure as it is and so has no interval"
        claims.append(Claim(f"FVU of {row.baseline}, a trivial predictor, on activations", float(row.fvu), words=words))
    return claims


def _cost_claims(evidence: Evidence, shape: LayerShape, width: int | None) -> Said:
    claims: Said = []
    here = evidence.here
    dense = here[here["kind"] == "dense"]
    teacher = None if width is None else width * per_neuron(shape, shape.glu)
    for name, spec in evidence.settings.students().items():
        if spec.kind == "dense" or name not in here.index:
            continue
        total, router, _ = spec_cost(spec, shape)
        if teacher is not None:
            words = f"{router / total:.0%} of them are the router's; above 1 nothing is saved; counted, so without an interval"
            claims.append(Claim(f"multiply-adds of {name}, over the layer's own", total / teacher, words=words))
        rivals = dense[(dense["multiply_adds"] <= total) & (dense["multiply_adds"] > 0.9 * total)]
        rival = str(rivals["multiply_adds"].idxmax()) if len(rivals) else ""
        found = evidence.compared(ACTIVATIONS, rival, name) if rival else None
        if found is None:
            continue
        case = Case(
            f"error of {rival}, of as many multiply-adds with the router's, / {name}: the experts pay",
            math.exp(found.value),
            found.effect(f"what {rival} explains", evidence.margin),
            published=published.COST,
            interval=interval(found),
            gate=evidence.gate((rival, name), ACTIVATIONS),
            family=f"{name} / {rival}",
        )
        claims.append(judged(case, found))
    return claims


def _splice_claims(table: pd.DataFrame | None) -> Said:
    if table is None:
        return []
    rows = table.set_index("layer_is")
    mean = Control("its mean output in the layer's place", float(rows["added"].get("mean output", float("nan"))))
    return [
        Claim(
            f"loss added by {name} in the layer's place",
            float(row["added"]),
            interval=None if np.isnan(row["low"]) else (float(row["low"]), float(row["high"])),
            control=mean,
            words=f"nats per token, of {rows.loc['original', 'loss']:.3g}; "
            + ("one held-out document: no interval" if np.isnan(row["low"]) else "paired by held-out document"),
        )
        for name, row in rows.iterrows()
        if name not in ("original", "mean output")
    ]


def _facts(students: pd.DataFrame) -> Said:
    """What a reader must know of the training: rates at the edge of those tried, and runs that diverged."""
    claims: Said = []
    tried = students.groupby(["data", "student"])["lr"].agg(["min", "max", "nunique"])
    edge = []
    for (data, name), part in students[students["chosen"]].groupby(["data", "student"], sort=False):
        low, high, n = tried.loc[(data, name)]
        if n > 1 and part["lr"].iloc[0] in (low, high):
            edge.append(f"{name} on {data} (lr {part['lr'].iloc[0]:g})")
    if edge:
        words = f"{_first_of(edge)}; try rates beyond; a count, so without an interval"
        claims.append(Claim("students whose learning rate lies at the edge of those tried", len(edge), words=words))
    diverged = students[students["status"].str.startswith("diverged")]
    if len(diverged):
        where = _first_of([f"{r.student} at lr {r.lr:g} on {r.data}" for r in diverged.itertuples()])
        words = f"stopped and left out: {where}; a count, so without an interval"
        claims.append(Claim("training runs that diverged", len(diverged), words=words))
    return claims


def _first_of(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
