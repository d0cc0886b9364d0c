"""A monitor in two stages: its promise and who calibrates it; and steering that is written into a checkpoint."""

from __future__ import annotations

from tests.mutants.fault import faults

_CASCADE, _MONITOR = "studies/robustness/cascade.py", "runtime/monitor.py"
MONITOR = faults(
    "monitor",
    "monitor",
    (
        "promise-on-what-is-flagged",
        "promise",
        "the bound is on the share that is flagged",
        _MONITOR,
        "learn_then_test(missed, risk, delta, binary=True)",
        "learn_then_test(missed, 1 - risk, delta, binary=True)",
        ("test_the_promise_holds_over_splits",),
    ),
    (
        "promise-on-one-stage",
        "promise",
        "what the second stage lets go is not missed",
        _MONITOR,
        "missed = np.stack([~c.decisions(first, second)[0] for c in candidates], axis=1).astype(float)",
        "missed = np.stack([~c.decisions(first, second + np.inf)[0] for c in candidates], axis=1).astype(float)",
        ("test_the_promise_holds_over_splits",),
    ),
    (
        "bound-the-other-way",
        "promise",
        "thresholds rise for as long as the misses do not show more than the risk",
        "stats/conformal.py",
        "failed = np.flatnonzero((binomial_p if binary else hoeffding_bentkus_p)(risk, n, alpha) > delta)",
        "failed = np.flatnonzero(risk > alpha)",
        ("test_the_promise_holds_over_splits",),
    ),
    (
        "judged-on-calibration",
        "split",
        "the prompts that calibrate judge too",
        "studies/robustness/turns.py",
        "for of in ((1, 2), (3, 4), (0,)))",
        "for of in ((1, 2), (3, 4), (0, 3)))",
        ("test_what_it_says_and_costs",),
    ),
    (
        "changed-by-another-turn",
        "changes",
        "changed prompts are judged by thresholds of another monitor",
        _CASCADE,
        "turn.thresholds[CASCADE].decisions(first, second)",
        "turn.thresholds[WHOLE].decisions(first, second)",
        ("test_what_it_says_and_costs",),
    ),
    (
        "cues-know-the-answer",
        "fit",
        "scores are fitted on all prompts",
        _CASCADE,
        "scores = [fit_score(part[rows.fit], y[rows.fit]) for part in x]",
        "scores = [fit_score(part, y) for part in x]",
        ("test_a_category_that_is_none_is_not_told",),
    ),
    (
        "whole-model-never-asked",
        "second stage",
        "who is not sure is let go in the one pass",
        _MONITOR,
        "second[left.numpy()] = self.second.of(mean.cpu().numpy())",
        "second[left.numpy()] = -abs(self.second.of(mean.cpu().numpy())) - 99",
        ("test_one_pass_gives_what_the_two_stages_give",),
    ),
)
_EXPORT = "studies/steer/export.py"
EXPORT = faults(
    "steer",
    "../steer_export",
    (
        "ban-is-boost",
        "export",
        "what a ban adds to the router's bias has the other sign",
        _EXPORT,
        "NEVER = -1e4",
        "NEVER = 1e4",
        ("test_a_ban_and_a_boost_stand_in_the_bias",),
    ),
    (
        "boost-is-taken-off",
        "export",
        "a boost is taken from the bias",
        _EXPORT,
        "flat[expert] += value",
        "flat[expert] -= value",
        ("test_a_ban_and_a_boost_stand_in_the_bias",),
    ),
    (
        "banned-are-kept",
        "export",
        "the banned experts are those that stay",
        _EXPORT,
        "if e not in dropped[number]]",
        "if e + 1 not in dropped[number]]",
        ("test_experts_are_left_out_and_scaled",),
    ),
    (
        "not-compared",
        "export",
        "what was written is not compared with the edits",
        _EXPORT,
        "if not difference <= most:",
        "if not difference <= most + 1:",
        ("test_what_cannot_be_written_is_refused_by_name",),
    ),
    (
        "compared-with-no-edits",
        "export",
        "what was written is compared with the model as it is",
        _EXPORT,
        "off += float((found - hooked).square().sum())",
        "off += float((plain - plain).square().sum())",
        ("test_what_cannot_be_written_is_refused_by_name",),
    ),
)
FAULTS = [*MONITOR, *EXPORT]
