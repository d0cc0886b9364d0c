"""Faults in which neurons are chosen, what chooses, what judges that, and what it is held against."""

from __future__ import annotations

from tests.mutants.fault import Fault, faults

_SPARSIFY = "studies/sparsify/"

FAULTS: list[Fault] = [
    *faults(
        "sparsify",
        "sparsify",
        (
            "another-tokens-choice-is-its-own",
            "another token",
            "the choice that is to be another token's is the token's own",
            _SPARSIFY + "methods.py",
            "return planes(number, layer, x[other], a, u)",
            "return planes(number, layer, x, a, u)",
            ("test_random_neurons_and_another_tokens_lose_what_the_tokens_own_do_not",),
        ),
        (
            "random-is-chosen",
            "random neurons",
            "the neurons that are to be random are those that the low bits choose",
            _SPARSIFY + "frontier.py",
            "CHANCE: by_chance(seed),",
            "CHANCE: by_planes(choose),",
            ("test_random_neurons_and_another_tokens_lose_what_the_tokens_own_do_not",),
        ),
        (
            "static-is-the-tokens",
            "static neurons",
            "the neurons that are to be the same for every token are those of the token",
            _SPARSIFY + "frontier.py",
            '"static": by_average([i.float().to(layers[0].mlp.gate.device) for i in found.importance()]),',
            '"static": by_oracle,',
            ("test_random_neurons_and_another_tokens_lose_what_the_tokens_own_do_not",),
        ),
        (
            "plain-weights-as-they-were",
            "plain formats",
            "the weights that are to have few bits have all",
            "intervene/quality.py",
            'rounded(weight.data, down if down is not None and "down" in name else bits)',
            "rounded(weight.data, 8)",
            ("test_fewer_bits_lose_more",),
        ),
        (
            "threshold-of-what-is-left-out",
            "calibration",
            "a threshold keeps the share that it was to leave out",
            _SPARSIFY + "calibration.py",
            ".numpy(), 1 - share))",
            ".numpy(), share))",
            ("test_a_threshold_keeps_the_share_that_it_was_set_for",),
        ),
        (
            "searched-on-what-judges",
            "validation text",
            "bits and shares are chosen on the text that judges them",
            _SPARSIFY + "study.py",
            'search, loaded, mlps, formats, parts["select"]',
            'search, loaded, mlps, formats, parts["judge"]',
            ("test_what_is_left_open_is_chosen_on_text_that_does_not_judge",),
        ),
        (
            "worse-budgets-are-kept",
            "validation text",
            "of two budgets the one that validates worse is kept",
            _SPARSIFY + "study.py",
            "kept = min(validated, key=",
            "kept = max(validated, key=",
            ("test_budgets_are_kept_if_they_validate_better",),
        ),
    ),
    *faults(
        "sparsify",
        "../models_sparse",
        (
            "all-bits-choose",
            "the chooser",
            "all bits of gate choose, though few are counted",
            "models/sparse.py",
            "activation(x @ gate.prefix(bits).T)",
            "activation(x @ gate.prefix().T)",
            ("test_a_sparse_mlp_computes_the_neurons_that_its_first_bits_expect_to_write_most",),
        ),
        (
            "every-neuron-stays-at-work",
            "equality",
            "after the model was compared with every neuron at work, every neuron stays so",
            "models/sparse.py",
            "            mlp.neurons = count",
            "            mlp.neurons = max(count, mlp.neurons)",
            ("test_every_neuron_at_work_is_the_dense_model_of_the_codes_or_it_is_refused",),
        ),
    ),
    *faults(
        "sparsify",
        "../sparsify_study",
        (
            "cheapest-rival-of-more-bytes",
            "plain formats",
            "a choice of neurons is held against plain weights that read more",
            _SPARSIFY + "claims.py",
            'rivals = formats[formats["bytes"] <= row["bytes"]]',
            'rivals = formats[formats["bytes"] >= row["bytes"]]',
            ("test_what_is_recommended_beats_the_plain_weights_that_read_no_more",),
        ),
        (
            "own-codes-are-no-rival",
            "the file's own codes",
            "a quantised copy is not held against the codes of its file",
            _SPARSIFY + "claims.py",
            "isin([FILE, *",
            "isin([*",
            ("test_plain_weights_that_read_no_more_and_lose_no_more_are_recommended_instead",),
        ),
    ),
]
