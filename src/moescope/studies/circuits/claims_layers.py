"""Where a circuit lies and what its coordinates look like: claims that rest on layers and geometry."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import t as student

from moescope.select.ranking import divergence
from moescope.studies.circuits import published
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control, Published


def layer_claims(
    name: str, found: TaskFindings, tables: dict[str, pd.DataFrame], settings: CircuitSettings
) -> list[Claim | Case]:
    """Layers, columns, growth and projection of one task's circuit."""
    claims = [
        _strata(name, found, tables["depth_range"], settings),
        _columns(name, found, tables["columns"]),
        _pair(name, tables["neurons"]),
        _growth(name, found, settings),
        projection_case(name, tables["pc1"], settings),
    ]
    if found.features.n_classes == 2:  # of more, a mean has no opposite
        claims.append(
            Claim(
                f"{name}: neurons take opposite signs for the classes",
                "of every neuron",
                id="H11",
                published=Published("bipolar", f"{published.SOURCE}, section 4.7"),
                outcome="identity",
                words="the means of two classes lie on opposite sides of their common mean by construction, so that there is "
                "nothing to have an interval",
            )
        )
    return claims


def _strata(name: str, found: TaskFindings, ranges: pd.DataFrame, settings: CircuitSettings) -> Claim | Case:
    row = ranges.query("task == @name").iloc[0]
    layers = found.features.columns.layers
    mean, null = float(row["mean_layer"]), float(row["random_mean"])
    said = f"layers {int(row['first_layer'])} to {int(row['last_layer'])}, mean {mean:.1f}"
    where = published.STRATA.get(name)
    facts = f"{int(row['coordinates'])} distinct coordinates in {said}"
    statement = f"{name}: the circuit lies {where[0] if where else 'in layers of its own'}"
    source = Published(where[1], f"{published.SOURCE}, section 4.4") if where else None
    if len(layers) < 3:
        return Claim(statement, said, "H7", source, outcome="not tested", words=f"it needs three layers, here {len(layers)}")
    depth = layers[-1] - layers[0]
    sign = -1 if where and where[0] == "early" else 1 if where or mean >= null else -1
    ends = sorted(sign * (mean - float(row[end])) / depth for end in ("random_low", "random_high"))
    against = (
        f"its coordinates at random places (mean layer {null:.1f}), as a share of the depth {'up' if sign < 0 else 'down'}"
    )
    effect = Effect(
        sign * (mean - null) / depth, ends[0], ends[1], against, settings.margin, float(row["p"]), kind="none found"
    )
    return Case(statement, mean, effect, "H7", source, control=Control("coordinates at random places", null), words=facts)


def _columns(name: str, found: TaskFindings, columns: pd.DataFrame) -> Claim:
    rows = columns.query("task == @name")
    largest, distinct = int(rows["n_layers"].max()), int(rows["distinct_coordinates"].iloc[0])
    residual = found.circuit.neurons[0].site.kind == "resid"
    top = min(10, found.features.columns.n)
    reported = published.COLUMN.get(name)
    carried = residual and largest > 1
    reason = "the skip connection carries a residual coordinate on, so that one is seen in several layers" if carried else ""
    return Claim(
        f"{name}: one coordinate fills several places of the top {top}",
        largest,
        id="H6",
        published=None if reported is None else Published(reported, f"{published.SOURCE}, section 4.4, Mistral-7B"),
        outcome="identity" if carried else "descriptive",
        words=f"the {top} are {distinct} distinct coordinates, in {int(rows['clusters'].iloc[0])} clusters correlated at "
        f"|r| ≥ 0.9{'; ' if reason else ''}{reason}; a count of this circuit, without an interval",
    )


def _pair(name: str, neurons: pd.DataFrame) -> Claim:
    rows = neurons.query("task == @name").head(2)
    said = " and ".join(
        f"{row.neuron} of layer {row.layer} (chosen in {row.fold_frequency:.0%} of folds)" for row in rows.itertuples()
    )
    reported = published.PAIR.get(name)
    return Claim(
        f"{name}: the best two neurons",
        said,
        id="H5",
        published=None if reported is None else Published(reported, f"{published.SOURCE}, section 4.6, Mistral-7B"),
        words="a naming of neurons, which tests nothing and has no interval",
    )


def _growth(name: str, found: TaskFindings, settings: CircuitSettings) -> Claim | Case:
    """Divergence of the circuit's coordinates over all layers, on rows that did not choose them."""
    columns = found.features.columns
    statement = f"{name}: the circuit's divergence grows layer by layer"
    source = Published("grows within a circuit", f"{published.SOURCE}, sections 4.4 and 4.5")
    same = len({(site.kind, width) for site, width in zip(columns.sites, columns.widths, strict=True)}) == 1
    if not same or len(columns.layers) < 3:
        why = "it needs one kind of site in three layers or more"
        return Claim(statement, math.nan, "H8", source, outcome="not tested", words=why)
    depth, width = np.linspace(0, 1, len(columns.layers)), columns.widths[0]
    slopes = []
    for fold, chosen in enumerate(found.cv.selected[:, : settings.k]):
        held = found.sums.fold(fold)
        if (held.n > 1).all():
            scores = divergence(*held, sigma=settings.sigma).reshape(len(depth), width)
            curve = scores[:, np.unique(chosen % width)].mean(1)
            slopes.append(float(np.polyfit(depth, curve, 1)[0] / curve.mean()))
    if len(slopes) < 3:
        return Claim(statement, math.nan, "H8", source, outcome="not tested", words="folds that lack a class judge nothing")
    n = len(slopes)
    # Nadeau and Bengio (2003): folds share training rows
    error = float(np.std(slopes, ddof=1)) * math.sqrt(1 / n + 1 / (n - 1))
    value, half = float(np.mean(slopes)), float(student.ppf(0.975, n - 1)) * error
    p = float(2 * student.sf(abs(value) / error, n - 1)) if error > 0 else 1.0
    effect = Effect(value, value - half, value + half, "no change from the first layer to the last", settings.margin, p)
    return Case(
        statement,
        value,
        effect,
        "H8",
        source,
        (effect.low, effect.high),
        words="slope over the depth as a share of the mean divergence, on the folds that did not choose the neurons",
    )


def projection_case(name: str, pc1: pd.DataFrame, settings: CircuitSettings, source: Published | None = None) -> Case:
    """Whether the classes differ along PC1 more, or less, than permuted labels do."""
    row = pc1.query("task == @name").iloc[0]
    share, null = float(row["class_share"]), float(row["null_share"])
    low, high = share - float(row["null_high"]), share - float(row["null_low"])
    effect = Effect(share - null, low, high, f"permuted labels ({null:.1%})", settings.margin, float(row["p"]))
    means = ", ".join(f"{m:+.2f}" for m in pc1.query("task == @name")["mean"])
    return Case(
        f"{name}: the classes differ along PC1 of the last layer",
        share,
        effect,
        id="H10",
        published=source,
        control=Control("permuted labels", null),
        words=f"share of the component's variance between classes, its interval the range over permuted labels; means {means}, "
        "opposite in any balanced, centred data; of standardised coordinates' PC1 "
        f"{float(row['class_share_standardised']):.1%}, p = {float(row['p_standardised']):.2g}; PC1 explains "
        f"{float(row['explained']):.0%} of all variance, {float(row['explained_null']):.0%} were coordinates independent",
    )
