"""The controls of a task with a graded label: chance, trivial cues, other neurons, whole layers, and an untrained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from moescope.select.graded import fixed_graded_cv
from moescope.select.ranking import layer_matched_sets, random_sets
from moescope.stats import Difference, permutation_p, permute_labels
from moescope.studies.circuits.control_rows import Evidence, gap_columns
from moescope.studies.circuits.controls import SAMPLED, SURFACE
from moescope.studies.circuits.cues import EMBEDDING
from moescope.studies.circuits.features import Features
from moescope.studies.circuits.graded import (
    GradedFindings,
    GradedScorer,
    best_site,
    graded_own,
    scorer_on,
    site_probes,
    spearman,
)
from moescope.studies.circuits.reread import Reread
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.protocol import Context
from moescope.tasks.folds import graded_folds


@dataclass
class _Out(Evidence):
    """Rows of the table ``graded_controls``."""

    found: GradedFindings
    measure = "r2"
    columns = ("control", "r2", "low", "high", "spearman", "gap", "gap_low", "gap_high", "p", "note")

    @property
    def circuit(self) -> np.ndarray:
        return np.asarray(self.found.cv.said[self.found.cv.ks.index(self.settings.k)])

    def row(self, control: str, said: np.ndarray, note: str, scorer: GradedScorer | None = None) -> dict[str, Any]:
        scorer = self.found.scorer if scorer is None else scorer
        found = scorer.gap(said)
        row = {"control": control, "r2": found.value, "low": found.low, "high": found.high, "note": note}
        self.rows.append(row | {"spearman": spearman(scorer.y, said)})
        return self.rows[-1]

    def beside(self, control: str, said: np.ndarray, note: str) -> Difference:
        gap = self.found.scorer.gap(self.circuit, said)
        self.row(control, said, note).update(gap_columns(gap))
        return gap

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"graded_controls": self.table(), "effects": pd.DataFrame(self.effects, columns=list(_EFFECT))}


_EFFECT = ("task", "effect", "value", "low", "high", "p", "against", "bits", "k")


def graded_control_tables(
    found: GradedFindings, settings: CircuitSettings, *, read: Reread, context: Context, step: Callable[[str], None]
) -> dict[str, pd.DataFrame]:
    """The tables ``graded_controls``, the circuit itself first, and ``effects``; arguments as for classes."""
    out = _Out(found, settings, context)
    features, scorer, k = found.features, found.scorer, settings.k
    out.row(
        "circuit", out.circuit, f"top {k} neurons, selection {settings.selection}; intervals {scorer.widening:.2f} times wider"
    )
    said = "selected on all rows: optimistic" if settings.selection == "nested" else "selected in training folds"
    other = "circuit_global" if settings.selection == "nested" else "circuit_nested"
    out.beside(other, found.other.said[found.other.ks.index(k)], said)
    probe, chosen = best_site(found.probes, features.y, features.folds)
    layers = " or ".join(map(str, sorted({features.columns.sites[i].layer for i in chosen})))
    lost = out.beside("full_layer_probe", probe, f"ridge on a whole layer (layer {layers}, chosen by the other folds)")
    out.effect("probe", lost, against=f"{scorer.r2(probe):.1%}")
    out.effect("probe: chance", scorer.gap(probe))
    _cues(out)
    step("random circuits")
    _random(out)
    _leak(out)
    step("permuted labels")
    out.effect("chance", scorer.gap(out.circuit)._replace(p=_permuted(out)))
    step("fixed template")
    _read_anew(out, read, step)
    return out.tables()


def _cues(out: _Out) -> None:
    cues, scorer, k = out.found.cues, out.found.scorer, out.settings.k
    for cue in cues.said:
        out.beside(cue if cue == EMBEDDING else SURFACE + cue, cues.held_out(cue), "learnt in the training folds")
    names, best = " or ".join(dict.fromkeys(cues.chosen())), cues.chosen_said()
    out.beside("chosen_cue", best, f"{names}, chosen inside the training folds")
    both = cues.with_circuit(out.found.features.x, out.found.cv.selected[:, :k])
    out.row("cue_and_circuit", both, "the chosen cue and the circuit read together")
    out.effect("cue", scorer.gap(both, best), against=names)


def _random(out: _Out) -> None:
    features, settings, k = out.found.features, out.settings, out.settings.k
    rng, columns = np.random.default_rng(features.seed), features.columns
    for control, sets in (
        ("random_circuit", random_sets(rng, columns.n, k, settings.n_random)),
        ("layer_matched_circuit", layer_matched_sets(rng, out.found.ranking[:k], columns.layer_of, k, settings.n_random)),
    ):
        own = set(out.found.ranking[:k].tolist())
        others = sum(set(members.tolist()) != own for members in sets)
        out.context.control(
            f"{out.name}: {control}", differs=others > 0, evidence=f"{others} of {len(sets)} sets are other neurons"
        )
        said = np.stack([fixed_graded_cv(features.x[:, m], features.y, features.folds) for m in sets])
        values = np.array([out.found.scorer.r2(one) for one in said])
        gap = out.found.scorer.gap(out.circuit, said)
        note = f"{len(sets)} sets of {k}; the range of 95 % of them; the gap is to their mean"
        out.draws(control, values, note, **gap_columns(gap))
    out.effect("layer matched", gap, against=f"{values.mean():.1%}")


def _leak(out: _Out) -> None:
    """What the circuit would explain with near-duplicate texts on both sides of the splits, as the task was given."""
    features, leak = out.found.features, out.leak()
    if leak is None:
        return
    rng = np.random.default_rng(features.seed)
    folds = graded_folds(features.y, np.asarray(leak.given), out.settings.n_folds, rng)
    said = graded_own(replace(features, folds=folds), out.settings).said[0]
    gap = out.beside("near_duplicates_split", said, f"{leak.merged} near-duplicate texts dealt to folds as if they were others")
    out.effect("leak", gap._replace(value=-gap.value, low=-gap.high, high=-gap.low))


def _permuted(out: _Out) -> float:
    """The whole procedure, selection included, on values permuted within groups; the p of the circuit's R² among them."""
    features, settings = out.found.features, out.settings
    if settings.n_label_permutations == 0:
        return float("nan")
    values, moved = [], []
    for y in _drawn(features, settings):
        moved.append(float((y != features.y).mean()))
        rng = np.random.default_rng(features.seed)
        folds = graded_folds(y, features.groups, settings.n_folds, rng)
        other = replace(features, y=y, folds=folds)
        values.append(scorer_on(other).r2(graded_own(other, settings).said[0]))
    out.context.control(
        f"{out.name}: permuted labels", differs=min(moved) > 0, evidence=f"{np.mean(moved):.1%} of the labels moved on average"
    )
    p = float(permutation_p(out.found.scorer.r2(out.circuit) - 1e-9, np.asarray(values)))
    out.draws("permuted_labels", np.asarray(values), f"{len(values)} label permutations, the range of 95 % of them", p=p)
    return p


def _drawn(features: Features, settings: CircuitSettings) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(features.seed)
    for _ in range(settings.n_label_permutations):
        yield np.asarray(permute_labels(features.y, features.groups, rng))


def _read_anew(out: _Out, read: Reread, step: Callable[[str], None]) -> None:
    settings = out.settings
    scorer, own = scorer_on(read.own, out.found.scorer.widening), out.circuit
    if read.sampled:
        own = graded_own(read.own, settings).said[0]
        out.row(SAMPLED, own, f"found and tested {read.note}: for the gaps below", scorer)

    def add(control: str, said: np.ndarray, note: str) -> Difference:
        gap = scorer.gap(own, said)
        out.row(control, said, f"{note}; {read.note}" if read.note else note, scorer).update(gap_columns(gap))
        return gap

    if read.template is not None:
        template = graded_own(read.template, settings).said[0]
        add("fixed_template", template, "same closing words after every text")
        out.effect("template", scorer.gap(template))
    step("randomly initialised twin")
    if read.twin is not None:
        note = "same architecture and tokenizer, random weights"
        out.effect("twin", add("random_twin_circuit", graded_own(read.twin, settings).said[0], note))
        twin, _ = best_site(site_probes(read.twin), read.twin.y, read.twin.folds)
        out.effect("twin's probe", add("random_twin_probe", twin, note))
