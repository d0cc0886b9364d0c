"""Nulls whose law is known in closed form (docs/theory.md)."""

from __future__ import annotations

from tests.mutants.fault import faults

FAULTS = faults(
    "theory",
    "../theory",
    (
        "columns-apart",
        "coordinates",
        "one coordinate in several layers counts as many",
        "studies/circuits/overlap.py",
        "space = [-1 if site.kind in STREAM else i",
        "space = [i if site.kind in STREAM else i",
        ("test_t8_a_skip_connection_alone_makes_one_coordinate_fill_many_places",),
    ),
    (
        "random-cosine-of-all-experts",
        "random routing",
        "the closed form counts experts as not chosen that were",
        "routing/nulls.py",
        "tokens / (tokens + (n_experts - k) / k)",
        "tokens / (tokens + n_experts / k)",
        ("test_t6_uniform_routing_gives_the_cosine_of_the_closed_form[8-8-2]",),
    ),
    (
        "all-classes-in-the-selection",
        "nested selection",
        "features are chosen with the held-out rows",
        "select/nested.py",
        "divergence(*sums.train(fold), sigma=sigma)",
        "divergence(*sums.total(), sigma=sigma)",
        ("test_t7_features_chosen_on_all_rows_pass_on_noise_as_the_closed_form_says",),
    ),
    (
        "halves-overlap-themselves",
        "cross-half overlap",
        "two tasks are compared on what each shares with itself",
        "studies/circuits/overlap.py",
        "[(shared(x, v, k) + shared(y, u, k)) / 2 for",
        "[(shared(x, y, k) + shared(u, v, k)) / 2 for",
        ("test_t13_two_directions_in_any_basis_look_like_circuits_of_their_own",),
    ),
)
