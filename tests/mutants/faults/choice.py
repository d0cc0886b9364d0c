"""What is chosen together, what a task's circuit shares with the choice, and the nulls of both."""

from __future__ import annotations

from tests.mutants.fault import faults

_CHOICE, _TOGETHER = "studies/choice/", "routing/together.py"
_FOUND = "test_neurons_that_go_together_whatever_the_word_are_found"
_WORD = "test_what_equal_words_choose_is_explained_by_the_word"
_CIRCUIT = "test_neurons_that_wake_for_a_class_are_its_circuit_and_are_chosen_for_it"

FAULTS = faults(
    "choice",
    "../choice_study",
    (
        "dealt-out-as-it-was",
        "rates",
        "choices that are to be dealt out anew are the measured ones",
        _TOGETHER,
        "            for half, table in enumerate(tables):\n                trade(",
        "            for half, table in enumerate([t.copy() for t in tables]):\n                trade(",
        (_FOUND,),
    ),
    (
        "tokens-gain-neurons",
        "rates",
        "a token that trades takes any number of what only one of two has",
        _TOGETHER,
        "table[a, apart[i]] = i < own",
        "table[a, apart[i]] = i <= own",
        ("test_choices_dealt_out_anew_keep_both_numbers_and_take_every_form",),
    ),
    (
        "any-token-is-equal",
        "token identity",
        "choices that are to be traded among equal tokens are traded among all",
        _CHOICE + "together.py",
        "(each.again, each.strata) for each",
        "(each.again, None) for each",
        (_WORD,),
    ),
    (
        "groups-of-their-judges",
        "groups",
        "groups are judged on the half on which they were found",
        _TOGETHER,
        "(_within(groups[0], second, upper) + _within(groups[1], first, upper)) / 2",
        "(_within(groups[0], first, upper) + _within(groups[1], second, upper)) / 2",
        ("test_rates_alone_make_nothing_go_together",),
    ),
    (
        "halves-are-one",
        "halves",
        "both halves are of the same texts",
        _TOGETHER,
        "np.flatnonzero(of == half)",
        "np.flatnonzero(of)",
        ("test_rates_alone_make_nothing_go_together",),
    ),
    (
        "choice-is-the-circuit",
        "circuit and choice",
        "the neurons by choice are ranked by their activations",
        _CHOICE + "overlap.py",
        "choices = [best(found.rates, found.y, rows, k) for rows in halves]",
        "choices = [best(found.activations, found.y, rows, k) for rows in halves]",
        ("test_a_circuit_that_is_always_chosen_is_not_in_the_choice",),
    ),
    (
        "circuit-and-choice-of-one-half",
        "circuit and choice",
        "circuit and choice are ranked on the same half",
        _CHOICE + "overlap.py",
        "for rows in halves][::-1]",
        "for rows in halves]",
        ("test_circuit_and_choice_are_ranked_on_texts_apart",),
    ),
    (
        "random-neurons-of-any-layer",
        "random neurons",
        "the random neurons beside a circuit are of any layer",
        _CHOICE + "overlap.py",
        '{"layers": [found.layer] * 2,',
        '{"layers": [0 * found.layer] * 2,',
        ("test_random_neurons_are_of_the_circuits_layers_and_chosen_as_often",),
    ),
    (
        "chosen-as-often-as-any",
        "chosen as often",
        "neurons that are to be chosen as often are any of the layer",
        _CHOICE + "overlap.py",
        "order * _TENTHS // len(inside)",
        "0 * order",
        ("test_random_neurons_are_of_the_circuits_layers_and_chosen_as_often",),
    ),
    (
        "permuted-labels-as-they-were",
        "permuted labels",
        "the labels that are to be permuted are the task's own",
        _CHOICE + "overlap.py",
        "best(rates, y, everything, len(circuit))",
        "best(rates, found.y[rows], everything, len(circuit))",
        (_CIRCUIT,),
    ),
)
