"""Two models, or two versions of one: robustness, transfer, conversion."""

from __future__ import annotations

from tests.mutants.fault import Fault, faults

_ROBUST = "studies/robustness/"
ROBUSTNESS = faults(
    "robustness",
    "robustness",
    (
        "monitor-saw-the-prompt",
        "monitor's folds",
        "the monitor was fitted with the prompt that it names",
        _ROBUST + "monitor.py",
        ".fit(signatures[r.fit], y[r.fit])",
        ".fit(signatures, y)",
        ("test_a_monitor_has_not_seen_the_prompt",),
    ),
    (
        "monitor-saw-the-topic",
        "topic folds",
        "the monitor was fitted with other prompts on the same topic",
        _ROBUST + "study.py",
        "topics = np.array([p.topic for p in asked]) if all(p.topic for p in asked) else None",
        "topics = None",
        ("test_a_monitor_has_not_seen_the_topic",),
    ),
    (
        "identity-changes",
        "identity control",
        "the identity control writes something behind the text",
        _ROBUST + "perturb.py",
        '"identity": identity,',
        '"identity": suffix,',
        ("test_only_the_identity_moves_nothing",),
    ),
    (
        "changes-are-identity",
        "perturbations",
        "perturbed prompts are as they were",
        _ROBUST + "study.py",
        "texts = read([p.text for p in written])",
        "texts = read([p.text for p in asked])",
        ("test_only_the_identity_moves_nothing",),
    ),
    (
        "luck-has-fewer-tries",
        "random suffixes",
        "the random suffixes beside the search have the search's start as their only tries",
        _ROBUST + "attack.py",
        "random = np.minimum(random, luck.min(1))",
        "random = np.minimum(random, random)",
        ("test_the_search_stands_beside_the_best_of_as_many_random_suffixes",),
    ),
    (
        "null-is-one-suffix",
        "random suffixes",
        "the null of the search is one random suffix",
        _ROBUST + "claims.py",
        'control=Control(against, rate["random"])',
        'control=Control(against, rate["first"])',
        ("test_that_best_is_the_null_of_the_claim",),
    ),
    (
        "wrong-prompts-attacked",
        "attacked prompts",
        "prompts are attacked that the monitor names wrongly already",
        _ROBUST + "study.py",
        "np.flatnonzero(predicted == y)",
        "np.flatnonzero(predicted >= 0)",
        ("test_the_attacked_are_prompts_that_the_monitor_names_rightly",),
    ),
)

_TRANSFER = "studies/transfer/"
TRANSFER = faults(
    "transfer",
    "transfer",
    (
        "pairing-of-a-kept",
        "shuffled pairings",
        "A's prompts are not shuffled under the null",
        _TRANSFER + "study.py",
        "held_out(space_a[order], space_b,",
        "held_out(space_a, space_b,",
        ("test_shuffled_pairings_align_less",),
    ),
    (
        "pairing-of-b-kept",
        "shuffled pairings",
        "B's prompts are not shuffled under the null",
        _TRANSFER + "study.py",
        "held_out(space_a, space_b[order],",
        "held_out(space_a, space_b,",
        ("test_shuffled_pairings_align_less",),
    ),
    (
        "likeness-unshuffled",
        "shuffled similarities",
        "the similarities' null is not shuffled",
        _TRANSFER + "alignment.py",
        "matrix[np.ix_(order, order)][upper] for",
        "matrix[upper] for",
        ("test_shuffled_prompts_are_not_alike",),
    ),
    (
        "within-is-over-all",
        "shuffled within category",
        "what is shuffled within categories is shuffled over all",
        _TRANSFER + "alignment.py",
        "inside = [pairing(y, topics, rng, within=True) for",
        "inside = [pairing(y, topics, rng) for",
        ("test_within_a_category_the_shuffle_stays_within_it",),
    ),
    (
        "pairing-breaks-topics",
        "shuffled topics",
        "prompts on one topic are torn apart under the null",
        _TRANSFER + "study.py",
        "topics=a.topics,",
        "topics=None,",
        ("test_shuffled_pairings_keep_topics_together",),
    ),
    (
        "topics-in-training",
        "held-out topics",
        "prompts on the held-out topics are trained on",
        _TRANSFER + "study.py",
        "prompt_folds(y, a.topics,",
        "prompt_folds(y, None,",
        ("test_a_rotation_and_a_classifier_do_not_know_the_topic",),
    ),
    (
        "tokens-not-held-fixed",
        "tokens held fixed",
        "the tokens that are held fixed are those of other prompts",
        _TRANSFER + "study.py",
        "token_counts(a.trace).toarray())",
        "token_counts(a.trace).toarray()[np.random.default_rng(0).permutation(len(y))])",
        ("test_what_both_have_of_the_tokens_is_held_fixed",),
    ),
    (
        "rotation-fitted-on-test",
        "folds",
        "rotation and classifier are fitted on the prompts that judge them too",
        _TRANSFER + "alignment.py",
        "train, test = rows.fit, rows.judge\n        alignment",
        "train, test = np.arange(len(y)), rows.judge\n        alignment",
        ("test_a_rotation_and_a_classifier_do_not_know_the_topic",),
    ),
)

_CONVERT = "studies/convert/"
CONVERT = faults(
    "convert",
    "convert",
    (
        "judged-on-calibration",
        "judge text",
        "quality is measured on the text that calibrates",
        "intervene/held_out.py",
        'made.part(at, count, f"{made.name}, last quarter")',
        'made.part(at // 2, at, f"{made.name}, last quarter")',
        ("test_quality_is_measured_on_text_that_did_not_calibrate",),
    ),
    (
        "random-split-is-chosen",
        "random split",
        "the random split is the chosen one",
        _CONVERT + "layers.py",
        "method=method,\n            circuits",
        "method=settings.method,\n            circuits",
        ("test_neurons_that_work_together_are_split_together_and_at_random_are_not",),
    ),
    (
        "static-keeps-the-least",
        "static pruning",
        "static pruning keeps the neurons that contribute least",
        _CONVERT + "layers.py",
        "mask[values.topk(max(",
        "mask[(-values).topk(max(",
        ("test_static_pruning_keeps_what_contributes_most",),
    ),
    (
        "refit-of-held-out-text",
        "refit",
        "the down projections are fitted to the text that judges them",
        _CONVERT + "study.py",
        "refit_windows(calibrating, run.seed)",
        "refit_windows(testing, run.seed)",
        ("test_static_pruning_keeps_what_contributes_most",),
    ),
)
CONVERT += faults(
    "convert",
    "../convert_refit",
    (
        "penalty-chosen-where-fitted",
        "refit",
        "the penalty is chosen on the windows that give the normal equations",
        _CONVERT + "refit.py",
        "windows.chosen(order[:held].sort().values)",
        "windows.chosen(order[held:].sort().values)",
        ("test_fitting_and_choosing_are_apart",),
    ),
    (
        "refit-on-dense-inputs",
        "refit",
        "each layer is refitted to what the dense layers below give, not to what the converted ones do",
        _CONVERT + "refit.py",
        "self._states[kind] = [b + (",
        "self._states[kind] = wanted or [b + (",
        ("test_a_layer_reads_what_the_converted_layers_below_give",),
    ),
)
CONVERT += faults(
    "convert",
    "../convert_study",
    (
        "controls-not-refitted",
        "random split",
        "the random split keeps the dense model's projections where the conversion is refitted",
        _CONVERT + "study.py",
        "build_model(loaded, target, counts, layers, module=dense)",
        'build_model(loaded, target, counts, layers, module=None if "random" in kind else dense)',
        ("test_the_split_beats_its_controls",),
    ),
    (
        "bound-by-the-router",
        "oracle routing",
        "the bound is a choice at random",
        _CONVERT + "bounds.py",
        "experts = expert_masses(h, down, members).topk(",
        "experts = torch.rand(len(h), len(members)).topk(",
        ("test_the_split_beats_its_controls",),
    ),
)

BATCHING = [
    Fault(
        name="models-batches-that-change-a-text",
        study="models",
        where="batches",
        breaks="a model whose texts depend on what is beside them is given several at a time",
        file="capture/activations.py",
        old="[rows] if model.batching.allows(side, int(lengths[rows[0]])) else",
        new="[rows] if True else",
        tests=("tests/test_models_batching.py::test_a_model_that_looks_at_its_batch_is_run_one_by_one",),
    )
]

FAULTS = [*ROBUSTNESS, *TRANSFER, *CONVERT, *BATCHING]
