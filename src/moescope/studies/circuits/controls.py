"""The controls of one task: what a trivial cue, chance, an untrained model or another basis would give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.select.nested import fixed_cv
from moescope.select.ranking import layer_matched_sets, random_sets
from moescope.stats import Difference, permutation_p, permute_labels
from moescope.studies.circuits import published
from moescope.studies.circuits.control_rows import Controls, both_hits, gap_columns, own_protocol
from moescope.studies.circuits.control_task import control_labels
from moescope.studies.circuits.depth import EVEN, RAW, best_site_hits, direction_hits, early_layer, layer_probes
from moescope.studies.circuits.features import own_cv
from moescope.studies.circuits.geometry import rotated, rotations, standardised
from moescope.studies.circuits.images import NO_TEMPLATE, balanced_on
from moescope.studies.circuits.reread import Reread
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.study.protocol import Context
from moescope.tasks import group_folds, matched_subset, slots

SURFACE = "surface: "
MAJORITY = "majority class"
SAMPLED = "circuit_on_sample"
N_CONTROL_TASKS = 10
STEPS = (
    "random circuits",
    "permuted labels",
    "rotated basis",
    "surface-matched subset",
    "fixed template",
    "randomly initialised twin",
)


def control_tables(
    found: TaskFindings,
    settings: CircuitSettings,
    *,
    tokenizer: Any,
    read: Reread,
    context: Context,
    n_layers: int,
    step: Callable[[str], None],
) -> dict[str, pd.DataFrame]:
    """The tables ``controls``, the circuit itself first, and ``effects``.

    Args:
        read: the template and the twin. Where they were read on a sample of the rows, the circuit found and tested on
            this sample alone has a row of its own, ``SAMPLED``, and their gaps are to it.
        context: takes the proof that each control differs from what it controls.
        step: called with the name of each of ``STEPS`` as it begins (for progress).
    """
    out = Controls(found, settings, context)
    features, scorer, k = found.features, found.scorer, settings.k
    at = found.cv.ks.index(k)
    note = f"top {k} neurons, selection {settings.selection}; intervals {scorer.widening:.2f} times those of independent hits"
    out.row("circuit", found.cv.correct[at], out.circuit, scorer, note)
    other = found.cv_other
    said = "selected on all rows, as published: optimistic" if settings.selection == "nested" else "selected in training folds"
    out.beside(
        "circuit_global" if settings.selection == "nested" else "circuit_nested", both_hits(other, other.ks.index(k)), said
    )
    probe, chosen = best_site_hits(found.hits, features.y, features.folds)
    layers = " or ".join(map(str, sorted({features.columns.sites[i].layer for i in chosen})))
    out.beside("full_layer_probe", probe, f"logistic regression on a whole layer (layer {layers}, chosen by the other folds)")
    direction, _ = best_site_hits(direction_hits(features, found.sums), features.y, features.folds)
    out.beside("one_direction", direction, "difference of class means of a whole layer, chosen by the other folds", "direction")
    chance = scorer.gap(out.circuit, scorer.chance)
    majority = features.y == np.bincount(features.y).argmax()
    out.row(MAJORITY, majority, majority, scorer).update(gap_columns(chance))
    _cues(out)
    _few(out, probe[EVEN], n_layers)

    step("random circuits")
    _random_sets(out)
    _leak(out)
    step("permuted labels")
    out.effect("chance", chance._replace(p=_permuted_labels(out)))
    _control_task(out, tokenizer)
    step("rotated basis")
    _rotated(out)
    n_massive = int(found.massive.sum())
    lighter = both_hits(own_protocol(features, features.x, settings, allowed=~found.massive, sums=found.sums))
    note = f"{n_massive} massive neurons left out" if n_massive else "no neuron is massive here"
    out.beside("without_massive", lighter, note)
    if n_massive:
        out.effect("massive", scorer.gap(lighter[EVEN], out.circuit))
    step("surface-matched subset")
    if features.task.kind == "tokens":
        _unseen(out)
    else:
        _matched(out)
    step("fixed template")
    _read_anew(out, read, step)
    return {"controls": out.table(), "effects": pd.DataFrame(out.effects)}


def _cues(out: Controls) -> None:
    found, scorer = out.found, out.found.scorer
    cues, k = found.cues, out.settings.k
    for cue in cues.said:
        name = cue if cue not in cues.surface else SURFACE + cue
        out.beside(name, np.stack([cues.hits(cue)] * 2), "learnt in the training folds, classes weighed alike")
    names = " or ".join(dict.fromkeys(cues.chosen()))
    best = cues.chosen_hits()
    out.beside("chosen_cue", np.stack([best] * 2), f"{names}, chosen inside the training folds")
    both, bits = cues.with_circuit(found.features.x, found.cv.selected[:, :k], out.settings.classifier)
    out.row("cue_and_circuit", both, both, scorer, "the chosen cue and the circuit read together")
    out.effect("cue", scorer.gap(both, best), against=names, bits=scorer.bits(bits, best, out.settings.margin))


def _few(out: Controls, probe: np.ndarray, n_layers: int) -> None:
    """Two neurons beside the probe, and the circuit of the first layers beside that of all."""
    found, scorer, settings = out.found, out.found.scorer, out.settings
    x, cues = found.features.x, found.cues
    best = cues.chosen_hits()
    at = min(range(len(found.cv.ks)), key=lambda i: abs(found.cv.ks[i] - 2))
    two = found.cv.even[at]
    out.effect("probe: chance", scorer.gap(probe, scorer.chance))
    out.effect("two", scorer.gap(two, probe), against=f"{scorer.balanced(probe):.1%}", k=found.cv.ks[at])
    out.effect("two: chance", scorer.gap(two, scorer.chance))
    both, bits = cues.with_circuit(x, found.cv.selected[:, : found.cv.ks[at]], settings.classifier)
    out.effect("two: cue", scorer.gap(both, best), bits=scorer.bits(bits, best, out.settings.margin))
    layer = early_layer(found.features, published.EARLY_EXIT_FRACTION, n_layers)
    first, last = found.early[layer], found.early[max(found.early)]
    out.effect("early", scorer.gap(first.even[0], last.even[0]), against=f"{scorer.balanced(last.even[0]):.1%}", k=layer)
    out.effect("early: chance", scorer.gap(first.even[0], scorer.chance))
    both, bits = cues.with_circuit(x, first.selected, settings.classifier)
    out.effect("early: cue", scorer.gap(both, best), bits=scorer.bits(bits, best, out.settings.margin))


def _leak(out: Controls) -> None:
    """What the circuit would score with near-duplicate texts on both sides of the splits, as the task was given."""
    features, leak = out.found.features, out.leak()
    if leak is None:
        return
    folds = group_folds(features.y, leak.given, n_folds=out.settings.n_folds, seed=features.seed)
    hits = both_hits(own_cv(replace(features, folds=folds), out.settings))
    out.beside("near_duplicates_split", hits, f"{leak.merged} near-duplicate texts dealt to folds as if they were others")
    out.effect("leak", out.found.scorer.gap(hits[EVEN], out.circuit))


def _random_sets(out: Controls) -> None:
    found, settings, features = out.found, out.settings, out.found.features
    rng, columns, k = np.random.default_rng(features.seed), features.columns, settings.k
    for control, sets in (
        ("random_circuit", random_sets(rng, columns.n, k, settings.n_random)),
        ("layer_matched_circuit", layer_matched_sets(rng, found.ranking[:k], columns.layer_of, k, settings.n_random)),
    ):
        own_set = set(found.ranking[:k].tolist())
        others = sum(set(members.tolist()) != own_set for members in sets)
        out.context.control(
            f"{out.name}: {control}",
            differs=others > 0,
            evidence=f"{others} of {len(sets)} sets are other neurons than the circuit's",
        )
        hits = np.stack([both_hits(fixed_cv(features.x[:, m], features.y, features.folds, settings.classifier)) for m in sets])
        gap = found.scorer.gap(out.circuit, hits[:, EVEN].mean(0))
        note = f"{len(sets)} sets of {k}; the range of 95 % of them; the gap is to their mean"
        balanced = found.scorer.balanced(hits[:, EVEN].mean(0))
        out.draws(control, hits[:, RAW].mean(1), note, balanced=balanced, **gap_columns(gap))
    out.effect("layer matched", gap)


def _permuted_labels(out: Controls) -> float:
    """The whole procedure, selection included, on labels permuted within groups: its range, and the circuit's p, two-sided."""
    found, settings, features = out.found, out.settings, out.found.features
    if settings.n_label_permutations == 0:
        return float("nan")
    rng = np.random.default_rng(features.seed)
    draws = [permute_labels(features.y, features.groups, rng) for _ in range(settings.n_label_permutations)]
    moved = float(np.mean([(y != features.y).mean() for y in draws]))
    out.context.control(
        f"{out.name}: permuted labels",
        differs=moved > 0 and all(_keep_groups(features.y, y, features.groups) for y in draws),
        evidence=f"{moved:.1%} of the labels moved on average; every group keeps its kind",
    )
    values, raw = [], []
    for y in draws:
        scorer, result = Scorer(y, features.groups), own_protocol(features, features.x, settings, y)
        values.append(scorer.balanced(result.even[0]))
        raw.append(float(result.accuracy[0]))
    away = abs(found.scorer.balanced(out.circuit) - found.scorer.chance) - 1e-9
    p = float(permutation_p(away, np.abs(np.asarray(values) - found.scorer.chance)))
    note = f"{len(values)} label permutations, the range of 95 % of them"
    out.draws("permuted_labels", np.asarray(raw), note, p=p, balanced=float(np.mean(values)))
    return p


def _keep_groups(y: np.ndarray, permuted: np.ndarray, groups: np.ndarray) -> bool:
    """Whether groups of several classes keep their labels among themselves, and groups of one class one class."""
    code, classes = np.unique(groups, return_inverse=True)[1], int(y.max()) + 1
    before, after = (np.bincount(code * classes + labels, minlength=(code.max() + 1) * classes) for labels in (y, permuted))
    before, after = before.reshape(-1, classes), after.reshape(-1, classes)
    mixed = (before > 0).sum(1) > 1
    return bool((before[mixed] == after[mixed]).all() and ((after[~mixed] > 0).sum(1) == 1).all())


def _control_task(out: Controls, tokenizer: Any) -> None:
    """Selectivity (Hewitt and Liang 2019): the same procedure on random labels that are a function of the input."""
    settings, features, scorer = out.settings, out.found.features, out.found.scorer
    rng = np.random.default_rng(features.seed)
    values, raw, moved = [], [], []
    for _ in range(N_CONTROL_TASKS):
        y, n_types = control_labels(features, tokenizer, settings.position, rng)
        moved.append(float((y != features.y).mean()))
        try:
            result = own_protocol(features, features.x, settings, y)
        except InputError:  # a fold trains without a class: the texts have too few kinds of input for this control
            if features.task.kind != "tokens":
                return
            continue  # words are of many kinds: a rare class can be missing in one draw and not in the next
        values.append(Scorer(y, features.groups).weighed(result.even[0]))
        raw.append(float(result.accuracy[0]))
    if not values:
        return
    out.context.control(
        f"{out.name}: control task", differs=max(moved) > 0, evidence=f"{np.mean(moved):.1%} of the labels are others"
    )
    # both have the same chance level, so that the gap is the selectivity
    gap = scorer.difference(scorer.weighed(out.circuit), np.mean(values, axis=0))
    kind = "word" if features.task.kind == "tokens" else "final token, or text"
    note = f"a random label for each of {n_types} inputs ({kind}), {len(values)} draws; the gap is selectivity"
    out.draws("control_task", np.asarray(raw), note, balanced=float(np.mean(values)), **gap_columns(gap))
    out.effect("control task", gap)


def _rotated(out: Controls) -> None:
    """The circuit sought in random bases of each site, its coordinates standardised so that no wide one fills them all."""
    settings, features, scorer = out.settings, out.found.features, out.found.scorer
    level = standardised(features.x, features.columns)
    hits = []
    for i in range(settings.n_rotations):
        bases = rotations(features.columns, features.seed + i)
        x = rotated(level, features.columns, bases)
        # a basis vector that is a neuron has a weight of one on it; a site of one neuron has no other basis
        kept = max(float(np.square(basis).max(0).mean()) for basis in bases.values())
        out.context.control(
            f"{out.name}: rotated basis {i + 1}",
            differs=bool(max(bases) == 1 or (kept < 0.99 and (x != level).any())),
            evidence=f"a rotated coordinate holds {kept:.1%} of its nearest neuron on average",
        )
        hits.append(both_hits(own_protocol(features, x, settings)))
    mean = np.mean(hits, axis=0)
    gap = scorer.gap(out.circuit, mean[EVEN], spread=scorer.spread(np.stack([one[EVEN] for one in hits])))
    note = f"mean over {len(hits)} random rotations of each site, standardised; their spread is in the gap's interval"
    out.row("rotated_basis", mean[RAW], mean[EVEN], scorer, note).update(gap_columns(gap))
    out.effect("rotation", gap)


def _matched(out: Controls) -> None:
    features, settings = out.found.features, out.settings
    if "matched" in features.not_run:
        out.rows.append({"control": "matched_subset", "note": features.not_run["matched"]})
        return
    rows = np.asarray(matched_subset(features.task, seed=features.seed))
    note = f"{len(rows)} rows balanced on {balanced_on(features.task)}"
    try:
        part = features.subset(rows, n_folds=settings.n_folds)
        hits = both_hits(own_protocol(part, part.x, settings))
    except InputError:
        # Too few rows of different classes are alike on the surface: a finding in itself, so it keeps its row.
        out.rows.append({"control": "matched_subset", "note": f"only {note}"})
        return
    scorer = replace(out.found.scorer, y=part.y, groups=part.groups)
    out.row("matched_subset", hits[RAW], hits[EVEN], scorer, note)
    out.effect("matched", scorer.gap(hits[EVEN], scorer.chance))


def _unseen(out: Controls) -> None:
    """Words that the training rows of their fold do not hold: what is known of them is not learnt word by word."""
    features, scorer = out.found.features, out.found.scorer
    words = np.asarray([word.casefold() for word in slots(features.task)])
    new = np.zeros(len(words), dtype=bool)
    for fold in np.unique(features.folds):
        held = features.folds == fold
        new[held] = ~np.isin(words[held], words[~held])
    note = f"{int(new.sum())} rows, {len(np.unique(words[new]))} words that no training row of their fold has"
    known = np.unique(features.groups[new])
    if len(known) < 2 or len(np.unique(features.y[new])) < features.n_classes:
        out.rows.append({"control": "unseen_words", "note": f"only {note}: not every class"})
        return
    own = replace(scorer, y=features.y[new], groups=features.groups[new])
    at = out.found.cv.ks.index(out.settings.k)
    out.row("unseen_words", out.found.cv.correct[at][new], out.circuit[new], own, note)
    out.effect("unseen", own.gap(out.circuit[new], own.chance))
    both, _ = out.found.cues.with_circuit(features.x, out.found.cv.selected[:, : out.settings.k], out.settings.classifier)
    cue = out.found.cues.chosen_hits()
    out.row("unseen_words_cue", cue[new], cue[new], own, "the chosen cue on the same words")
    out.effect("unseen: cue", own.gap(both[new], cue[new]))


def _read_anew(out: Controls, read: Reread, step: Callable[[str], None]) -> None:
    """The template and the twin, beside the circuit found on the rows that were read anew alone."""
    settings = out.settings
    scorer = replace(out.found.scorer, y=read.own.y, groups=read.own.groups)
    own = out.circuit
    if read.sampled:
        hits = both_hits(own_protocol(read.own, read.own.x, settings))
        own = hits[EVEN]
        out.row(SAMPLED, hits[RAW], own, scorer, f"found and tested {read.note}: for the gaps below")

    def add(control: str, hits: np.ndarray, note: str) -> Difference:
        gap = scorer.gap(own, hits[EVEN])
        row = out.row(control, hits[RAW], hits[EVEN], scorer, note)
        row.update(gap_columns(gap))
        if read.sampled:
            row["note"] += f"; {read.note}: ± {(row['high'] - row['low']) / 2:.1%}; the gap is that of {SAMPLED}"
        return gap

    if read.template is None:
        if read.own.task.kind != "tokens":
            out.rows.append({"control": "fixed_template", "note": read.own.not_run.get("template", NO_TEMPLATE)})
    else:
        template = both_hits(own_protocol(read.template, read.template.x, settings))
        add("fixed_template", template, "same closing words after every text")
        out.effect("template", scorer.gap(template[EVEN], scorer.chance))
    step("randomly initialised twin")
    if read.twin is not None:
        note = "the same module, untrained" if read.own.embed is None else "same architecture and tokenizer, random weights"
        out.effect("twin", add("random_twin_circuit", both_hits(own_protocol(read.twin, read.twin.x, settings)), note))
        twin, _ = best_site_hits(layer_probes(read.twin), read.twin.y, read.twin.folds)
        out.effect("twin's probe", add("random_twin_probe", twin, note))
