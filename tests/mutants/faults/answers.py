"""Questions that a model answers: its labels, the rivals of its neurons, and what is kept."""

from __future__ import annotations

from tests.mutants.fault import faults

_ANSWERS = "studies/circuits/answers.py"
FAULTS = faults(
    "answers",
    "../answers",
    (
        "rival-is-not-read",
        "log-probability and entropy",
        "the rival alone has nothing to go by, so that its knowledge counts as the circuit's",
        _ANSWERS,
        "for out, columns in ((alone, numbers), (both",
        "for out, columns in ((alone, 0 * numbers), (both",
        ("test_what_the_answers_odds_tell_already_is_not_counted_as_the_circuits",),
    ),
    (
        "permuted-across-confidence",
        "labels permuted among answers alike",
        "labels are permuted among all answers, whatever the rival says of them",
        _ANSWERS,
        "strata = strata_of(alone, features.groups)",
        "strata = np.zeros(len(alone), np.int64)",
        (
            "test_a_neuron_that_knows_is_found_beyond_the_answers_own_odds",
            "test_what_the_answers_odds_tell_already_is_not_counted_as_the_circuits",
        ),
    ),
    (
        "permuted-labels-are-true",
        "labels permuted among answers alike",
        "no label is moved",
        _ANSWERS,
        "y[inside] = permute_labels(y[inside], features.groups[inside], rng)",
        "y[inside] = y[inside]",
        ("test_a_neuron_that_knows_is_found_beyond_the_answers_own_odds",),
    ),
    (
        "difficulty-is-not-told",
        "majority by difficulty",
        "the cue of difficulty is told nothing of it",
        "tasks/answered.py",
        "cues[DIFFICULTY] = by_value(np.array([a.difficulty for a in given]))",
        "cues[DIFFICULTY] = by_value(np.array(['' for a in given]))",
        ("test_difficulty_that_decides_is_told_by_difficulty",),
    ),
    (
        "difficulty-is-no-rival",
        "difficulty",
        "what difficulty tells is not held against the circuit",
        _ANSWERS,
        "_one_hot([a.difficulty for a in given], 0.0)",
        "_one_hot([a.difficulty[:0] for a in given], 0.0)",
        ("test_difficulty_that_decides_is_told_by_difficulty", "test_a_neuron_that_knows_is_found_beyond_the_answers_own_odds"),
    ),
    (
        "confidence-is-no-cue",
        "the answer's log-probability",
        "the cue is the answer's length",
        "tasks/answered.py",
        'f"{ANSWER}mean log-probability": by_threshold(np.array([a.log_probability for a in given]), 2)',
        'f"{ANSWER}mean log-probability": by_threshold(np.array([a.tokens for a in given]), 2)',
        ("test_what_the_answers_odds_tell_already_is_not_counted_as_the_circuits",),
    ),
    (
        "words-are-no-rival",
        "the answer's own words",
        "which answer was given is not held against the circuit",
        _ANSWERS,
        "_one_hot([normalise(a.text) for a in given], _COMMON)",
        "_one_hot([normalise(a.question) for a in given], _COMMON)",
        ("test_where_one_answer_is_always_right_the_answers_words_tell",),
    ),
    (
        "rival-below-chance",
        "the rival as a yardstick",
        "a rival that is wrong more often than right makes the circuit look as if it added much",
        _ANSWERS,
        "return scores if auroc(scores, y) >= 0.5 else np.zeros(len(scores))",
        "return scores",
        ("test_a_rival_that_is_worse_than_a_guess_counts_as_a_guess",),
    ),
    (
        "read-before-the-answer",
        "position",
        "at the answer's end the model is read where the question ends",
        "capture/answers.py",
        "read, special = np.concatenate([read, ids]), np.concatenate([special, np.zeros(len(ids), bool)])",
        "read, special = read, special",
        ("test_an_answer_is_read_at_its_own_end",),
    ),
    (
        "kept-answers-of-another-model",
        "kept answers",
        "what one model wrote is taken for another's",
        "capture/answers.py",
        '"model": model.fingerprint,',
        '"model": "",',
        ("test_answers_are_written_once_and_a_damaged_copy_is_written_anew",),
    ),
)
