"""Pruning and steering of experts."""

from __future__ import annotations

from tests.mutants.fault import faults

_PRUNE = "studies/prune/study.py"
PRUNE = faults(
    "prune",
    "experts",
    (
        "judged-on-saliency",
        "judge half",
        "the loss of pruning is measured on the half on which saliency was read",
        _PRUNE,
        "for part in (rows.select, rows.judge))",
        "for part in (rows.select, rows.select))",
        ("test_saliency_is_read_on_other_documents_than_those_that_judge",),
    ),
    (
        "saliency-on-judges",
        "saliency half",
        "saliency is read on the half that judges",
        _PRUNE,
        "for part in (rows.select, rows.judge))",
        "for part in (rows.judge, rows.judge))",
        ("test_saliency_is_read_on_other_documents_than_those_that_judge",),
    ),
    (
        "random-is-the-criterion",
        "random masks",
        "the random masks are the criterion's",
        _PRUNE,
        "{layer: rng.random(len(v)) for layer, v",
        "{layer: v for layer, v",
        ("test_random_masks_are_not_the_criterions",),
    ),
    (
        "criteria-are-one",
        "criterion",
        "every criterion prunes by frequency",
        _PRUNE,
        "prune_mask(found.by(name), ratio",
        'prune_mask(found.by("frequency"), ratio',
        ("test_each_criterion_prunes_by_its_own_measure",),
    ),
    (
        "mask-of-another-criterion",
        "criterion",
        "the mask that is handed out is that of frequency, whatever was asked for",
        _PRUNE,
        "mask = masks[settings.by, settings.ratio][0]",
        'mask = masks["frequency", settings.ratio][0]',
        ("test_the_mask_is_that_of_the_criterion_asked_for",),
    ),
)

_STEER = "studies/steer/"
STEER = faults(
    "steer",
    "experts",
    (
        "random-is-the-ban",
        "matched random experts",
        "the random experts are those that are banned",
        _STEER + "experts_effect.py",
        "sets = matched_edits(edits, here, n_sets=settings.n_random, seed=run.seed)",
        "sets = [edits] * settings.n_random",
        ("test_a_ban_stands_beside_bans_of_others",),
    ),
    (
        "random-unmatched",
        "matched on usage",
        "the random experts are not matched on usage",
        _STEER + "experts_effect.py",
        "matched_edits(edits, here, n_sets",
        "matched_edits(edits, {layer: np.ones_like(u) for layer, u in here.items()}, n_sets",
        ("test_random_experts_are_used_as_much_as_the_banned",),
    ),
    (
        "target-is-all-text",
        "target text",
        "the effect on the target's text is measured on all text",
        _STEER + "effects.py",
        "_compared(steered[at], random[:, at], texts.groups(at), run.seed)",
        "_compared(steered, random, texts.groups(np.arange(len(steered))), run.seed)",
        ("test_a_ban_is_felt_where_its_experts_are_needed",),
    ),
    (
        "usage-of-others",
        "text that chooses experts",
        "the experts of a category are chosen by the other categories' usage",
        _STEER + "choose.py",
        "return usage[category], np.mean(",
        "return np.mean([u for c, u in usage.items() if c != category], axis=0), np.mean(",
        ("test_a_categorys_experts_are_chosen_by_its_own_prompts",),
    ),
    (
        "random-neurons-are-the-circuit",
        "matched random neurons",
        "the random neurons are those that are ablated",
        _STEER + "neurons_effect.py",
        "sets = matched_sets(neurons, norms, n_sets=settings.n_random, seed=run.seed)",
        "sets = [list(neurons)] * settings.n_random",
        ("test_a_neurons_ablation_stands_beside_that_of_other_neurons",),
    ),
)

FAULTS = [*PRUNE, *STEER]
