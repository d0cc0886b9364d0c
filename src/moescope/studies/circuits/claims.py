"""From measured effects to cases: each published statement of one task, what decides it, and what may explain it."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from moescope.studies.circuits import published
from moescope.studies.circuits.claims_layers import layer_claims
from moescope.studies.circuits.claims_pairs import language_claims, pair_claims
from moescope.studies.circuits.claims_several import several_claims
from moescope.studies.circuits.images import balanced_on
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.study.verdicts import Case, Effect, reading
from moescope.types import Claim, Control, Published

NOT_RUN = {
    "twin": "an untrained twin (twin is off)",
    "control task": "a control task (the texts have too few kinds of input)",
    "chance": "permuted labels (n_label_permutations is 0)",
    "matched": "texts alike in length and ending (too few)",
}
"""Controls of one task that some settings or texts leave out, by effect, each with why."""


def circuit_claims(
    found: dict[str, TaskFindings], tables: dict[str, pd.DataFrame], settings: CircuitSettings
) -> list[Claim | Case]:
    """All claims of a circuits study, in the order in which the source makes them."""
    claims: list[Claim | Case] = []
    for name in found:
        task = TaskClaims(name, found[name], tables, settings)
        claims += [*task.primary(), *task.others(), *layer_claims(name, found[name], tables, settings)]
        if found[name].features.n_classes > 2:
            claims += several_claims(name, tables["each_class"], tables["criteria"], settings)
    if len(found) > 1:
        claims += pair_claims(list(found), tables, settings)
    if "language" in tables:
        claims += language_claims(tables["language"], settings)
    return claims


class TaskClaims:
    """What the tables say of one task."""

    def __init__(self, name: str, found: TaskFindings, tables: dict[str, pd.DataFrame], settings: CircuitSettings) -> None:
        self.name, self.found, self.settings = name, found, settings
        self.controls = tables["controls"].query("task == @name").set_index("control")
        self.effects = tables["effects"].query("task == @name").set_index("effect")
        self.ranges = tables["accuracy"].query("task == @name")
        self.chance = found.scorer.chance

    def effect(self, name: str, against: str, **options: Any) -> Effect:
        row = self.effects.loc[name]
        p = None if options.get("no_worse") or math.isnan(row["p"]) else float(row["p"])
        value, low, high = (float(row[column]) for column in ("value", "low", "high"))
        seen = bool(row.get("bits", 0.0) > 0)
        return Effect(value, low, high, against, self.settings.margin, p, seen=seen, **options)

    def rivals(self, *wanted: tuple[str, str]) -> tuple[Effect, ...]:
        """Those of (effect, words) that were measured, as trivial cues; with ': chance' as chance."""
        known = [one for one in wanted if one[0] in self.effects.index and not (one[0].endswith("cue") and self.no_cues)]
        return tuple(
            self.effect(name, words, kind="chance" if name.endswith("chance") else "trivial cue") for name, words in known
        )

    def apart(self) -> tuple[Effect, ...]:
        """Near-duplicate texts that could not be kept on one side of a split: what they leak cannot be told."""
        if "apart" not in self.effects.index:
            return ()
        return (self.effect("apart", "near-duplicate texts, too many to be kept apart", kind="leakage"),)

    def not_run(self, *names: str) -> tuple[str, ...]:
        why = {**NOT_RUN, **self.found.features.not_run}
        off = [n for n in names if n not in self.effects.index or (n == "chance" and self.no_draws)]
        return tuple(why[n] for n in [*off, *(["cue"] if self.no_cues else [])])

    @property
    def no_cues(self) -> bool:
        """Whether nothing is known of the rows that a trivial cue could be read off."""
        return "cue" in self.found.features.not_run

    @property
    def cue_control(self) -> Control:
        value = float(self.controls.loc["chosen_cue", "balanced"])
        return Control("majority class" if self.no_cues else "chosen trivial cue", value)

    @property
    def no_draws(self) -> bool:
        return self.settings.n_label_permutations == 0

    def cue(self, name: str = "cue") -> tuple[str, str]:
        return name, f"the best trivial cue ({self.effects.loc['cue', 'against']})"

    def interval(self, name: str, shift: float) -> tuple[float, float]:
        """That of a balanced accuracy whose effect over ``shift`` is known."""
        row = self.effects.loc[name]
        return max(0.0, float(row["low"]) + shift), min(1.0, float(row["high"]) + shift)

    @property
    def k(self) -> str:
        return f"{self.settings.k} neuron{'s' if self.settings.k > 1 else ''}"

    def primary(self) -> list[Claim | Case]:
        """Those of :data:`~moescope.studies.circuits.settings.PRIMARY`, judged together."""
        return [self._handful(), self._same_layers(), self._two(), self._unit(), self._early()]

    def _handful(self) -> Case:
        balanced = float(self.controls.loc["circuit", "balanced"])
        raw, probe = float(self.controls.loc["circuit", "accuracy"]), float(self.controls.loc["full_layer_probe", "balanced"])
        beyond = int((self.found.null.p <= self.settings.alpha).sum())
        rivals = self.rivals(
            self.cue(),
            ("twin", "a randomly initialised twin"),
            ("control task", "random labels of the same inputs"),
        )
        said = f"accuracy {raw:.1%}, " if not math.isclose(raw, balanced, abs_tol=5e-4) else ""
        if "circuit_global" in self.controls.index:
            said += f"selected on all rows, as published, {float(self.controls.loc['circuit_global', 'balanced']):.1%}; "
        return Case(
            f"{self.name}: {self.k} tell the classes apart",
            balanced,
            self.effect("chance", f"chance ({self.chance:.1%} balanced)"),
            id="H2",
            published=_published(published.ACCURACY, self.name, "Table 2, mean of three models"),
            interval=self.interval("chance", self.chance),
            control=self.cue_control,
            rivals=(*self.apart(), *rivals),
            leak=self.effect("leak", "near-duplicate texts on both sides of the splits")
            if "leak" in self.effects.index
            else None,
            not_run=self.not_run("twin", "control task", "chance"),
            family=self.name,
            words=f"balanced accuracy; {said}full-layer probe {probe:.1%}; {beyond} of {len(self.found.null.p):,} neurons "
            f"differ between classes at {self.settings.alpha:.0%} family-wise",
            details={"p_best_neuron": float(self.found.null.p[self.found.ranking[0]]), "significant_neurons": beyond},
        )

    def _same_layers(self) -> Case:
        row = self.controls.loc["layer_matched_circuit"]
        anywhere = float(self.controls.loc["random_circuit", "balanced"])
        return Case(
            f"{self.name}: the {self.k} of the circuit tell more than random ones of their layers",
            float(self.controls.loc["circuit", "balanced"]),
            self.effect("layer matched", f"random neurons of the same layers ({float(row['balanced']):.1%} on average)"),
            interval=self.interval("chance", self.chance),
            control=Control("random neurons of the same layers", float(row["balanced"])),
            family=self.name,
            words=f"random neurons of any layer {anywhere:.1%}",
        )

    def _two(self) -> Case:
        row = self.effects.loc["two"]
        k = int(row["k"])
        two = self.chance + float(self.effects.loc["two: chance", "value"])
        probe = self.effect("probe: chance", "chance")
        against = f"the full-layer probe ({row['against']})"
        if reading(probe, probe.p, self.settings.alpha) == "shown":
            effect = self.effect("two", against, no_worse=True)
        else:  # a yardstick that itself is not told apart from chance measures nothing
            effect = Effect(
                math.nan, math.nan, math.nan, f"{against}, which is not told apart from chance", self.settings.margin
            )
        rows = self.ranges.query(
            "selection == @self.settings.selection and classifier == @self.settings.classifier and k == @k"
        ).iloc[0]
        sure = (
            f"sure (probability ≥ 0.9) of {rows['coverage']:.1%} of the texts, and right on {rows['selective_accuracy']:.1%} "
            "of those"
        )
        return Case(
            f"{self.name}: {k} neuron{'s' if k > 1 else ''} tell the classes apart as well as a whole layer",
            two,
            effect,
            id="H4",
            published=_published(published.TWO_NEURONS, self.name, "Table 3, Mistral-7B"),
            interval=self.interval("two: chance", self.chance),
            control=Control("full-layer probe", float(self.controls.loc["full_layer_probe", "balanced"])),
            rivals=self.rivals(("two: chance", "chance"), self.cue("two: cue")),
            family=self.name,
            words=sure if rows["coverage"] > 0 else "never sure (probability ≥ 0.9)",
        )

    def _unit(self) -> Case:
        row = self.controls.loc["rotated_basis"]
        return Case(
            f"{self.name}: single neurons are the unit",
            float(self.controls.loc["circuit", "balanced"]),
            self.effect(
                "rotation",
                f"{self.settings.k} coordinates of {self.settings.n_rotations} random bases ({float(row['balanced']):.1%})",
                kind="none found",
            ),
            interval=self.interval("chance", self.chance),
            control=Control("random bases", float(row["balanced"])),
            rivals=self.rivals(("chance", "chance")),
            family=self.name,
        )

    def _early(self) -> Claim | Case:
        row = self.effects.loc["early"]
        if len(self.found.features.columns.layers) == 1:
            statement = f"{self.name}: the first layers, to layer {int(row['k'])}, keep what all layers know"
            return Claim(statement, math.nan, id="H12", outcome="not tested", words="it needs two layers, and one was read")
        reported = published.DEPTH.get(self.name)
        value = self.chance + float(self.effects.loc["early: chance", "value"])
        said = f"{reported[0]:.1%} of {reported[1]:.1%} at {published.EARLY_EXIT_FRACTION:.0%} of the depth" if reported else ""
        return Case(
            f"{self.name}: the first layers, to layer {int(row['k'])}, keep what all layers know",
            value,
            self.effect("early", f"the circuit of all layers ({row['against']})", no_worse=True),
            id="H12",
            published=Published(said, f"{published.SOURCE}, section 4.8, Mistral-7B") if reported else None,
            interval=self.interval("early: chance", self.chance),
            control=self.cue_control,
            rivals=self.rivals(("early: chance", "chance"), self.cue("early: cue")),
            family=self.name,
            words="circuit chosen anew within these layers",
        )

    def others(self) -> list[Claim | Case]:
        """Those that are judged alone: one for each further control that is printed."""
        rows = self.controls
        made: list[Claim | Case] = [
            Case(
                f"{self.name}: {self.k} tell as much as one direction of a whole layer",
                float(rows.loc["circuit", "balanced"]),
                self.effect("direction", "the difference of class means of a layer", no_worse=True),
                interval=self.interval("chance", self.chance),
                control=Control("one direction", float(rows.loc["one_direction", "balanced"])),
                rivals=self.rivals(("chance", "chance")),
            ),
        ]
        made += [self._unseen()] if self.found.features.task.kind == "tokens" else self._of_texts()
        if "massive" in self.effects.index:
            made.append(
                Case(
                    f"{self.name}: the circuit does not need massive activations",
                    float(rows.loc["without_massive", "balanced"]),
                    self.effect("massive", "the circuit with them", no_worse=True),
                    control=Control("with them", float(rows.loc["circuit", "balanced"])),
                    words=f"no interval of its own: that of the loss decides; {rows.loc['without_massive', 'note']}",
                )
            )
        share = self.settings.k / self.found.features.columns.n
        made.append(
            Claim(
                f"{self.name}: share of all neurons that the circuit holds",
                share,
                id="H13",
                published=Published(published.SHARE, f"{published.SOURCE}, section 1.2"),
                words=f"{self.settings.k} of {self.found.features.columns.n:,}: a choice of the study, so without an interval",
            )
        )
        return made

    def _of_texts(self) -> list[Claim | Case]:
        """What a fixed ending and examples alike on the surface show, which labelled words do not have."""
        balanced = balanced_on(self.found.features.task)
        return [
            self._alone("template", "fixed_template", "the circuit reads the text, not only its last words"),
            self._alone("matched", "matched_subset", f"the circuit works where {balanced} are balanced"),
        ]

    def _unseen(self) -> Claim | Case:
        """What a probe knows of words that it did not learn: the answer to the leak of a word's own identity."""
        statement = f"{self.name}: {self.k} tell words apart that were not learnt"
        note = str(self.controls.loc["unseen_words", "note"])
        if "unseen" not in self.effects.index:
            return Claim(statement, math.nan, outcome="not tested", words=note)
        return Case(
            statement,
            float(self.controls.loc["unseen_words", "balanced"]),
            self.effect("unseen", f"chance ({self.chance:.1%} balanced)"),
            interval=self.interval("unseen", self.chance),
            control=Control("the chosen cue on the same words", float(self.controls.loc["unseen_words_cue", "balanced"])),
            rivals=self.rivals(self.cue("unseen: cue")),
            words=f"balanced accuracy; {note}; the circuit on all words {float(self.controls.loc['circuit', 'balanced']):.1%}",
        )

    def _alone(self, effect: str, control: str, statement: str) -> Claim | Case:
        if effect not in self.effects.index:
            words = str(self.controls.loc[control, "note"])
            return Claim(f"{self.name}: {statement}", math.nan, outcome="not tested", words=words)
        return Case(
            f"{self.name}: {statement}",
            float(self.controls.loc[control, "balanced"]),
            self.effect(effect, f"chance ({self.chance:.1%} balanced)"),
            interval=self.interval(effect, self.chance),
            control=Control("the circuit", float(self.controls.loc["circuit", "balanced"])),
            words=str(self.controls.loc[control, "note"]),
        )


def _published(values: dict[str, float], name: str, where: str) -> Published | None:
    return Published(values[name], f"{published.SOURCE}, {where}") if name in values else None
