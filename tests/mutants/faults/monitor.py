"""A monitor in two stages: its promise, who calibrates it, and what it is set beside."""

from __future__ import annotations

from tests.mutants.fault import faults

_CASCADE, _MONITOR = "studies/robustness/cascade.py", "runtime/monitor.py"
FAULTS = faults(
    "monitor",
    "monitor",
    (
        "promise-on-alarms",
        "promise",
        "prompts that are flagged count as missed",
        _MONITOR,
        "missed = np.stack([~c.decisions(first, second)[0] for c in candidates], axis=1).astype(float)",
        "missed = np.stack([c.decisions(first, second)[0] for c in candidates][::-1], axis=1).astype(float)",
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
        _CASCADE,
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
