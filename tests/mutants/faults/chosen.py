"""Which neurons count as chosen, and what their signatures stand beside."""

from __future__ import annotations

from tests.mutants.fault import faults

_CHOSEN, _SIGNATURES = "routing/chosen.py", "studies/signatures/"

FAULTS = faults(
    "chosen",
    "../routing_chosen",
    (
        "by-all-bits",
        "choice",
        "neurons count as chosen by all bits of their codes, not by those that choose",
        _CHOSEN,
        "partial(write_scores, bits=mlp.choose,",
        "partial(write_scores, bits=None,",
        ("test_a_sparse_models_trace_is_what_it_does",),
    ),
    (
        "any-number",
        "choice",
        "a sparse model's layers count as choosing as many neurons as the first does",
        _CHOSEN,
        "tuple(mlp.neurons for mlp in sparse)",
        "(sparse[0].neurons,) * len(sparse)",
        ("test_a_sparse_models_trace_is_what_it_does",),
    ),
    (
        "padding-chooses",
        "choice",
        "a text's first tokens are read where its last ones stand",
        "routing/dense.py",
        "chosen[row][mask[row]]",
        "chosen[row][mask[row].flip(0)]",
        ("test_a_dense_models_choice_is_by_the_first_bits_and_alters_nothing",),
    ),
    (
        "twin-chooses-for-itself",
        "untrained twin",
        "the untrained twin's choice is that of the trained model",
        "routing/traced.py",
        "other = traced(context, random, given,",
        "other = traced(context, loaded, given,",
        ("test_a_sparse_model_is_read_by_its_own_choice",),
    ),
    (
        "stream-is-the-choice",
        "residual stream",
        "what stands for the residual stream is the signature itself",
        _SIGNATURES + "classifications.py",
        "probed = cross_validate(stream, y, folds)",
        "probed = predicted",
        ("test_what_the_stream_holds_beyond_the_choice_is_seen",),
    ),
    (
        "stream-at-chance-measures",
        "residual stream",
        "a residual stream that is not told apart from chance is what the choice must reach",
        _SIGNATURES + "claims_accuracy.py",
        'if told_apart == "shown":',
        'if told_apart != "none":',
        ("test_a_choice_that_is_the_same_whatever_the_category_names_nothing",),
    ),
)
