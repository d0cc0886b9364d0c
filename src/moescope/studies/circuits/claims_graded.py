"""From measured effects to cases: a task with a graded label."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from moescope.studies.circuits.graded import GradedFindings
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.verdicts import Case, Effect, reading
from moescope.types import Claim, Control

_CHANCE = "chance (nothing explained)"


def graded_claims(
    name: str, found: GradedFindings, tables: dict[str, pd.DataFrame], settings: CircuitSettings
) -> list[Claim | Case]:
    """The claims of one task, judged together: whether K neurons follow it, more than others do, and as a whole layer does."""
    return _Graded(name, found, tables, settings).claims()


class _Graded:
    def __init__(self, name: str, found: GradedFindings, tables: dict[str, pd.DataFrame], settings: CircuitSettings) -> None:
        self.name, self.found, self.settings = name, found, settings
        self.controls = tables["graded_controls"].query("task == @name").set_index("control")
        self.effects = tables["effects"].query("task == @name").set_index("effect")
        self.size = f"{settings.k} neuron{'s' if settings.k > 1 else ''}"
        self.follow = "follow" if settings.k > 1 else "follows"

    def effect(self, name: str, against: str, **options: Any) -> Effect:
        row = self.effects.loc[name]
        p = None if options.get("no_worse") or math.isnan(row["p"]) else float(row["p"])
        value, low, high = (float(row[column]) for column in ("value", "low", "high"))
        return Effect(value, low, high, against, self.settings.margin, p, **options)

    def interval(self, name: str = "chance") -> tuple[float, float]:
        return float(self.effects.loc[name, "low"]), float(self.effects.loc[name, "high"])

    def r2(self, control: str) -> float:
        return float(self.controls.loc[control, "r2"])

    def claims(self) -> list[Claim | Case]:
        made: list[Claim | Case] = [self._handful(), self._same_layers(), self._whole()]
        if "template" in self.effects.index:
            made.append(
                Case(
                    f"{self.name}: the neurons read the text, not only its last words",
                    self.r2("fixed_template"),
                    self.effect("template", _CHANCE),
                    interval=self.interval("template"),
                    control=Control("the circuit", self.r2("circuit")),
                    words=f"R²; {self.controls.loc['fixed_template', 'note']}",
                )
            )
        return made

    def _handful(self) -> Case:
        rivals = [self.effect("cue", f"the best trivial cue ({self.effects.loc['cue', 'against']})", kind="trivial cue")]
        if "apart" in self.effects.index:
            rivals.insert(0, self.effect("apart", "near-duplicate texts, too many to be kept apart", kind="leakage"))
        if "twin" in self.effects.index:
            rivals.append(self.effect("twin", "a randomly initialised twin", kind="trivial cue"))
        not_run = [] if self.settings.n_label_permutations else ["permuted labels (n_label_permutations is 0)"]
        not_run += [] if "twin" in self.effects.index else ["an untrained twin (twin is off)"]
        row, beyond = self.controls.loc["circuit"], int((self.found.null.p <= self.settings.alpha).sum())
        return Case(
            f"{self.name}: {self.size} {self.follow} the graded label",
            self.r2("circuit"),
            self.effect("chance", _CHANCE),
            interval=self.interval(),
            control=Control("chosen trivial cue", self.r2("chosen_cue")),
            rivals=tuple(rivals),
            leak=self.effect("leak", "near-duplicate texts on both sides of the splits")
            if "leak" in self.effects.index
            else None,
            not_run=tuple(not_run),
            family=self.name,
            words=f"R² on held-out rows; Spearman's ρ {row['spearman']:.2f}; length alone {self.r2('surface: length'):.1%}; "
            f"selected on all rows {self.r2('circuit_global'):.1%}; {beyond} of {len(self.found.null.p):,} neurons are "
            f"correlated with it at {self.settings.alpha:.0%} family-wise"
            if "circuit_global" in self.controls.index
            else "R² on held-out rows",
        )

    def _same_layers(self) -> Case:
        return Case(
            f"{self.name}: the {self.size} {self.follow} it more than random ones of their layers",
            self.r2("circuit"),
            self.effect(
                "layer matched",
                f"random neurons of the same layers ({self.effects.loc['layer matched', 'against']} on average)",
            ),
            interval=self.interval(),
            control=Control("random neurons of the same layers", self.r2("layer_matched_circuit")),
            family=self.name,
            words=f"R²; random neurons of any layer {self.r2('random_circuit'):.1%}",
        )

    def _whole(self) -> Case:
        against = f"a ridge on a whole layer ({self.effects.loc['probe', 'against']})"
        probe = self.effect("probe: chance", "chance")
        if reading(probe, probe.p, self.settings.alpha) == "shown":
            effect = self.effect("probe", against, no_worse=True)
        else:  # a yardstick that itself is not told apart from chance measures nothing
            against += ", which is not told apart from chance"
            effect = Effect(math.nan, math.nan, math.nan, against, self.settings.margin)
        return Case(
            f"{self.name}: {self.size} {self.follow} it as well as a whole layer",
            self.r2("circuit"),
            effect,
            interval=self.interval(),
            control=Control("full-layer ridge", self.r2("full_layer_probe")),
            rivals=(self.effect("chance", "chance"),),
            family=self.name,
            words="R²",
        )
