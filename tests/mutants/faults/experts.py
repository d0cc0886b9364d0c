"""Pruning and steering of experts."""

from __future__ import annotations

from tests.mutants.fault import faults

_PRUNE = "studies/prune/"
PRUNE = faults(
    "prune",
    "experts",
    (
        "judged-on-saliency",
        "judge half",
        "the loss of pruning is measured on the half on which saliency was read",
        _PRUNE + "study.py",
        "for part in (rows.select, rows.judge))",
        "for part in (rows.select, rows.select))",
        ("test_saliency_is_read_on_other_documents_than_those_that_judge",),
    ),
    (
        "saliency-on-judges",
        "saliency half",
        "saliency is read on the half that judges",
        _PRUNE + "study.py",
        "for part in (rows.select, rows.judge))",
        "for part in (rows.judge, rows.judge))",
        ("test_saliency_is_read_on_other_documents_than_those_that_judge",),
    ),
    (
        "random-is-the-criterion",
        "random masks",
        "the random masks are the criterion's",
        _PRUNE + "rivals.py",
        "{layer: rng.random(len(v)) for layer, v",
        "{layer: v for layer, v",
        ("test_random_masks_are_not_the_criterions",),
    ),
    (
        "criteria-are-one",
        "criterion",
        "every criterion prunes by frequency",
        _PRUNE + "rivals.py",
        "{name: found.by(name) for name in CRITERIA}",
        '{name: found.by("frequency") for name in CRITERIA}',
        ("test_each_criterion_prunes_by_its_own_measure",),
    ),
    (
        "mask-of-another-criterion",
        "criterion",
        "the mask that is handed out is that of frequency, whatever was asked for",
        _PRUNE + "rivals.py",
        "self.mask = own",
        'self.mask = self._mask(scores["frequency"], ratio, spared)',
        ("test_the_mask_is_that_of_the_criterion_asked_for",),
    ),
)
PRUNE += faults(
    "prune",
    "prune",
    (
        "random-unmatched",
        "random masks",
        "the random masks leave out half as many experts",
        _PRUNE + "rivals.py",
        "self._mask(values, ratio, spared) for values in shuffled",
        "self._mask(values, ratio / 2, spared) for values in shuffled",
        ("test_random_masks_leave_out_as_many_experts",),
    ),
    (
        "guard-off",
        "guard",
        "super experts are left out like any other",
        _PRUNE + "rivals.py",
        "spared = found.super_experts() if settings.guard else frozenset()",
        "spared: frozenset[tuple[int, int]] = frozenset()",
        ("test_the_guard_keeps_what_a_model_breaks_without",),
    ),
    (
        "domain-unheeded",
        "saliency half",
        "experts are chosen by all text, whatever domain was asked for",
        _PRUNE + "study.py",
        "np.flatnonzero(first & chose)",
        "np.flatnonzero(first)",
        ("test_experts_are_chosen_by_the_domain_and_judged_on_others_too",),
    ),
    (
        "rounding-is-nothing",
        "8-bit control",
        "the weights that are called rounded are as they were",
        _PRUNE + "variants.py",
        "rounded(parameter[expert], bits)",
        "parameter[expert]",
        ("test_rounded_weights_are_not_the_whole_model",),
    ),
    (
        "bytes-unmatched",
        "8-bit control",
        "all experts are rounded, however few bytes pruning saves",
        _PRUNE + "variants.py",
        "count = min(len(values), round(share * len(values) / each))",
        "count = len(values)",
        ("test_as_many_experts_are_rounded_as_save_the_same_bytes",),
    ),
    (
        "mean-is-nothing",
        "mean output",
        "nothing is written in the place of an expert",
        _PRUNE + "variants.py",
        "return output + added.pop().reshape(output.shape)",
        "return output + 0 * added.pop().reshape(output.shape)",
        ("test_a_constant_in_the_place_of_an_expert_that_writes_one_costs_nothing",),
    ),
)
PRUNE += faults(
    "prune",
    "../prune_checkpoint",
    (
        "rows-of-others",
        "router",
        "a cut layer's router has the first rows, not those of the experts that stay",
        _PRUNE + "cut.py",
        "name: value[rows] if",
        "name: value[: len(rows)] if",
        ("test_layer_by_layer_is_the_model_and_the_cut_model_is_what_was_written",),
    ),
    (
        "written-rows-of-others",
        "router",
        "the router that is written has the first rows, not those of the experts that stay",
        _PRUNE + "checkpoint.py",
        "rows = tuple(np.flatnonzero(flags).tolist())",
        "rows = tuple(range(int(flags.sum())))",
        ("test_what_stays_is_the_sources_own",),
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
