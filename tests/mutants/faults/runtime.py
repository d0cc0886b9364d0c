"""Early exits and routers: which rows fit, calibrate and judge."""

from __future__ import annotations

from tests.mutants.fault import faults

_EXIT = "studies/exit/task.py"
_CUE = "tasks/surface.py"
_SPLIT = "fitting = rows.groups[rows.fit]"
_OTHER = 'object.__setattr__(rows, "{}", rows.{}); ' + _SPLIT
EXIT = faults(
    "exit",
    "exit",
    (
        "fitted-on-calibration",
        "fit",
        "heads are fitted on the rows that calibrate",
        _EXIT,
        _SPLIT,
        _OTHER.format("fit", "calibrate"),
        ("test_the_first_head_is_fitted_and_judged_where_it_is_right",),
    ),
    (
        "calibrated-on-fit",
        "calibrate",
        "the exit is calibrated on the rows that its heads were fitted on",
        _EXIT,
        _SPLIT,
        _OTHER.format("calibrate", "fit"),
        ("test_the_exit_is_calibrated_where_leaving_early_is_wrong",),
    ),
    (
        "calibrated-on-test",
        "calibrate",
        "the exit is calibrated on the rows that judge it",
        _EXIT,
        _SPLIT,
        _OTHER.format("calibrate", "judge"),
        ("test_the_exit_is_calibrated_where_leaving_early_is_wrong",),
    ),
    (
        "judged-on-calibration",
        "test",
        "the exit is judged on the rows that calibrate it",
        _EXIT,
        _SPLIT,
        _OTHER.format("judge", "calibrate"),
        ("test_the_first_head_is_fitted_and_judged_where_it_is_right",),
    ),
    (
        "judged-on-fit",
        "test",
        "the exit is judged on the rows that its heads were fitted on",
        _EXIT,
        _SPLIT,
        _OTHER.format("judge", "fit"),
        ("test_noise_is_noise_at_every_depth",),
    ),
    (
        "promise-at-full-depth",
        "guarantee",
        "the promise is about rows that do not leave early",
        "studies/exit/calibration.py",
        "exit_layers(probabilities, t, checks)",
        "np.full(len(y), probabilities.shape[1] - 1)",
        ("test_the_exit_is_calibrated_where_leaving_early_is_wrong",),
    ),
    (
        "promise-by-rows",
        "guarantee",
        "the promise counts rows where it should count groups",
        "studies/exit/calibration.py",
        "np.stack(rows, axis=1), groups)",
        "np.stack(rows, axis=1), np.arange(len(y)))",
        ("test_the_promise_counts_groups",),
    ),
    (
        "cue-in-sample",
        "surface cue",
        "the surface cue is chosen on rows that it has learnt",
        _CUE,
        "surface_predictions(task, train, held, tokenizer)",
        "surface_predictions(task, fit, held, tokenizer)",
        ("test_the_surface_cue_is_chosen_among_rows_that_it_has_not_learnt",),
    ),
    (
        "cue-by-test",
        "surface cue",
        "the surface cue is chosen by the rows that judge it",
        _EXIT,
        "chosen_cue(task, rows.fit, rows.judge, inner.folds, model.tokenizer)",
        "chosen_cue(task, rows.judge, rows.judge, np.arange(len(rows.judge)) % 3, model.tokenizer)",
        ("test_the_surface_cue_is_not_chosen_by_the_rows_that_judge",),
    ),
    (
        "random-is-the-exit",
        "exits at random",
        "the exits at random are those by confidence",
        _EXIT,
        "rng.permutation(rows) for _ in range(n)",
        "rows for _ in range(n)",
        ("test_exits_at_random_are_none_by_confidence",),
    ),
    (
        "random-is-deeper",
        "exits at random",
        "the exits at random run more layers than those by confidence",
        _EXIT,
        "np.asarray(right[rows, at[orders]])",
        "np.asarray(right[rows, np.full_like(at[orders], said.shape[1] - 1)])",
        ("test_exits_at_random_are_as_deep",),
    ),
)

_ROUTE = "studies/route/study.py"
_OF = "limit = int(np.quantile("
ROUTE = faults(
    "route",
    "route",
    (
        "calibrated-on-test",
        "unknown",
        "the router is calibrated on the rows that judge it",
        _ROUTE,
        _OF,
        'object.__setattr__(rows, "calibrate", rows.judge); ' + _OF,
        ("test_unknown_is_what_is_stranger_than_calibration_rows",),
    ),
    (
        "calibrated-on-fit",
        "unknown",
        "the router is calibrated on the rows that it was fitted on",
        _ROUTE,
        _OF,
        'object.__setattr__(rows, "calibrate", rows.fit); ' + _OF,
        ("test_each_task_is_calibrated_by_its_own_rows",),
    ),
    (
        "fitted-on-test",
        "fit",
        "the router is fitted on the rows that judge it",
        _ROUTE,
        "fitting = rows.groups[rows.fit]",
        'object.__setattr__(rows, "fit", rows.judge); fitting = rows.groups[rows.fit]',
        ("test_rows_that_judge_do_not_fit",),
    ),
    (
        "calibrated-together",
        "unknown by task",
        "strangeness to a task is calibrated by the rows of all",
        "runtime/route/router.py",
        "self.strangeness[self.owner == t]",
        "self.strangeness[self.owner >= 0]",
        ("test_each_task_is_calibrated_by_its_own_rows",),
    ),
    (
        "left-out-is-known",
        "task left out",
        "the task that was left out is asked of the router that knows it",
        _ROUTE,
        "strange[alone] = other.name(",
        "strange[alone] = router.name(",
        ("test_a_task_that_was_left_out_is_unknown",),
    ),
    (
        "cue-in-sample",
        "surface cue",
        "surface cues learn the rows that judge them",
        _CUE,
        "return best, surface_predictions(task, fit, judge, tokenizer)[best]",
        "return best, surface_predictions(task, judge, judge, tokenizer)[best]",
        ("test_the_surface_cue_has_not_learnt_the_rows_that_judge",),
    ),
    (
        "cue-by-test",
        "surface cue",
        "the surface cue is chosen by the rows that judge it",
        _ROUTE,
        "chosen_cue(together, rows.fit, rows.judge, inner.folds, loaded.tokenizer)",
        "chosen_cue(together, rows.judge, rows.judge, np.arange(len(rows.judge)) % 3, loaded.tokenizer)",
        ("test_the_surface_cue_is_not_chosen_by_the_rows_that_judge",),
    ),
)

FAULTS = [*EXIT, *ROUTE]
