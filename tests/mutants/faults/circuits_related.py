"""How circuits of several tasks are compared, and what they are worth to a further one."""

from __future__ import annotations

from tests.mutants.fault import faults

_CIRCUITS = "studies/circuits/related/"
FAULTS = faults(
    "circuits",
    "../similarity",
    (
        "likeness-others-left-out",
        "likeness of tasks: the other predictors",
        "the whole predictor is permuted, and the others are not taken out of it",
        "stats/matrices.py",
        "left_y, left_x = (values - given @ (given.T @ values) for values in (y, x))",
        "left_y, left_x = y - y.mean(), x - x.mean()",
        ("test_where_only_the_other_predictor_matters_p_keeps_its_level",),
    ),
    (
        "likeness-pairs-permuted-alone",
        "likeness of tasks: orders of the tasks",
        "pairs are permuted as if they were independent, not the tasks' order",
        "stats/matrices.py",
        "drawn = residual[orders[:, upper[0]], orders[:, upper[1]]]  # (P, pairs)",
        "drawn = np.random.default_rng(seed).permuted(np.tile(left_x, (len(orders), 1)), axis=1)",
        ("test_where_only_the_other_predictor_matters_p_keeps_its_level",),
    ),
    (
        "likeness-not-corrected-for-repetition",
        "likeness of tasks: correction for attenuation",
        "what two circuits share is set against their size, not against what each shares with itself",
        _CIRCUITS + "similarity.py",
        "across / math.sqrt(own[0] * own[1]) if reliable",
        "across / k if reliable",
        ("test_a_task_is_as_alike_to_itself_as_it_repeats_itself",),
    ),
    (
        "likeness-chance-counts",
        "likeness of tasks: permuted labels",
        "what permuted labels share counts as likeness",
        _CIRCUITS + "similarity.py",
        'across = row["split_half_cross"] - row["expected"]',
        'across = row["split_half_cross"]',
        ("test_likeness_follows_planted_neurons_and_not_words",),
    ),
    (
        "likeness-of-noise",
        "likeness of tasks: circuits that repeat themselves",
        "a circuit that does not repeat itself is compared all the same",
        _CIRCUITS + "similarity.py",
        "reliable &= own[-1] >= 1 and",
        "reliable |= own[-1] >= 1 and",
        ("test_tasks_without_a_circuit_are_left_out_by_name",),
    ),
)
FAULTS += faults(
    "circuits",
    "circuits_few_shot",
    (
        "few-shot-judged-by-its-labels",
        "few labels: the half that judges",
        "labelled texts are among those that judge",
        _CIRCUITS + "few_shot.py",
        "np.flatnonzero(new.folds != judge_of), np.flatnonzero(new.folds == judge_of)",
        "np.flatnonzero(new.folds == judge_of), np.flatnonzero(new.folds == judge_of)",
        ("test_labels_come_from_the_half_that_does_not_judge",),
    ),
    (
        "few-shot-random-is-the-circuit",
        "few labels: random neurons",
        "the random neurons are the circuits' own",
        _CIRCUITS + "few_shot.py",
        "sets = layer_matched_sets(rng, circuit, new.columns.layer_of, k, settings.n_random)",
        "sets = np.tile(circuit, (settings.n_random, 1))",
        ("test_a_task_of_the_same_neurons_is_learnt_from_few_labels",),
    ),
    (
        "few-shot-known-texts",
        "few labels: texts that chose no neuron",
        "texts on which the circuits were ranked may judge them",
        _CIRCUITS + "few_shot.py",
        "        if both:",
        "        if both < 0:",
        ("test_texts_that_chose_the_neurons_are_refused",),
    ),
    (
        "few-shot-chosen-by-the-new-task",
        "few labels: the other tasks' circuits",
        "the neurons are not those of the other tasks' circuits but the new task's own best",
        _CIRCUITS + "few_shot.py",
        "ranked = np.concatenate([task.ranking[: settings.k] for task in sources])",
        "ranked = np.argsort(-np.abs(np.corrcoef(new.x.T, new.y)[-1, :-1]))[: settings.k]",
        ("test_a_task_of_other_neurons_is_not",),
    ),
)
