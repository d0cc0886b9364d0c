"""How models of several sizes, and checkpoints, are compared."""

from __future__ import annotations

from tests.mutants.fault import faults

_CIRCUITS = "studies/circuits/"
FAULTS = faults(
    "circuits",
    "../scaling",
    (
        "sizes-twin-is-the-model",
        "sizes: untrained twins",
        "the twin that shows what size alone gives is the model",
        _CIRCUITS + "scaling.py",
        "twin = random_twin(model, context.run.seed)",
        "twin = model",
        ("test_a_circuit_that_tells_more_the_larger_the_model_is_found_to_and_untrained_twins_do_not",),
    ),
    (
        "sizes-twins-not-taken-off",
        "sizes: untrained twins",
        "what goes beyond the twins is the whole trend",
        _CIRCUITS + "scaling.py",
        "judge.accuracy(x, hits, twins)",
        "judge.accuracy(x, hits)",
        ("test_a_trend_that_untrained_networks_have_too_is_explained",),
    ),
    (
        "sizes-rows-for-groups",
        "sizes: texts are resampled by groups",
        "rows of one group count as texts of their own",
        _CIRCUITS + "scaling.py",
        "code = np.unique(first.groups, return_inverse=True)[1].ravel()",
        "code = np.arange(len(first.groups))",
        ("test_rows_of_one_group_are_no_more_texts",),
    ),
    (
        "sizes-models-are-no-sample",
        "sizes: interval over models",
        "the interval is that of these very models",
        _CIRCUITS + "trends.py",
        "low, high = joined(slope, texts, (slope - half, slope + half))",
        "low, high = texts",
        ("test_the_interval_covers_and_p_keeps_its_level",),
    ),
    (
        "sizes-orders-left-out",
        "sizes: orders of the models",
        "p is that over texts, however few models there are",
        _CIRCUITS + "trends.py",
        "max(_order_p(at, found), interval_p(slope, *texts))",
        "interval_p(slope, *texts)",
        ("test_orders_of_few_models_cannot_tell",),
    ),
    (
        "sizes-few-models-judged",
        "sizes: least number of models",
        "four models are judged, whose orders cannot decide",
        _CIRCUITS + "claims_scaling.py",
        'if row["models"] < least:',
        'if row["models"] < 3:',
        ("test_four_models_are_described_and_not_judged",),
    ),
    (
        "depth-not-half-way",
        "series: depth of decision",
        "a model of few layers seems to decide earlier than one of many",
        _CIRCUITS + "series.py",
        "(missing.sum(-1) + 0.5)",
        "missing.sum(-1)",
        ("test_depth_is_the_same_for_few_layers_and_many",),
    ),
    (
        "self-overlap-of-the-same-texts",
        "series: self-overlap of two halves",
        "the circuit is compared with itself on the same texts",
        _CIRCUITS + "series.py",
        "if c % 2 != side or c // 2 == j - 1]",
        "if c // 2 == j - 1]",
        ("test_a_circuit_is_found_again_where_it_is_planted_and_not_in_noise",),
    ),
    (
        "self-overlap-chance-of-true-labels",
        "series: permuted labels of the self-overlap",
        "chance is what the true labels give, so that nothing goes beyond it",
        _CIRCUITS + "series.py",
        "permute_labels(features.y, features.groups, rng), half)",
        "features.y, half)",
        ("test_a_circuit_is_found_again_where_it_is_planted_and_not_in_noise",),
    ),
)
