"""The statements of docs/theory.md, each tried on the product's own functions; the page's examples run too."""

from __future__ import annotations

import doctest
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import hypergeom

from benchmarks.dictionary import DictionarySettings, DictionaryTeacher, dictionary_pairs
from benchmarks.modularity import EVIDENCE, judged, load
from benchmarks.toy import Networks, World, module_width, separateness
from moescope.routing.nulls import random_cosine, simulated_cosine
from moescope.routing.overlap import overlap
from moescope.select.nested import nested_cv
from moescope.select.ranking import divergence, fold_class_sums, random_sets
from moescope.stats import disjoint_probability, expected_overlap, overlap_p
from moescope.studies.circuits.features import Features
from moescope.studies.circuits.geometry import principal_component
from moescope.studies.circuits.overlap import coordinates, permuted_rankings
from moescope.studies.circuits.pairs import cross_task_rows
from moescope.studies.distill.controls import control_pairs
from moescope.studies.distill.data import ArrayPairs
from moescope.studies.distill.evaluate import evaluate, fvu
from moescope.studies.distill.routers import LowRankRouter
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.students import LayerShape, Student
from moescope.study.encode import claim_json
from tests.made_features import QUICK, made_features, made_findings

PAGE = Path(__file__).parents[1] / "docs" / "theory.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page's examples define; that they give what the page says is tested on the way."""
    test = doctest.DocTestParser().get_doctest(PAGE.read_text(encoding="utf-8"), {}, "theory.md", str(PAGE), 0)
    failed, tried = doctest.DocTestRunner().run(test, clear_globs=False)
    assert tried > 20
    assert not failed
    return test.globs


def test_every_statement_of_the_page_has_a_test() -> None:
    stated = re.findall(r"^### (T\d+)\.", PAGE.read_text(encoding="utf-8"), re.M)
    assert stated == [f"T{i}" for i in range(1, len(stated) + 1)]
    tested = {name.split("_")[1].upper() for name in globals() if re.match(r"test_t\d+_", name)}
    assert tested == set(stated)


def test_t1_random_sets_overlap_as_the_hypergeometric_law_says() -> None:
    n, k = 40, 8
    one, two = random_sets(np.random.default_rng(0), n, k, 8000).reshape(2, 4000, k)
    shared = np.array([len(np.intersect1d(a, b)) for a, b in zip(one, two, strict=True)])
    error = 3 * math.sqrt(expected_overlap(k, n) / len(shared))
    assert abs(shared.mean() - expected_overlap(k, n)) < error
    assert (shared == 0).mean() == pytest.approx(disjoint_probability(k, n), abs=0.03)
    assert (shared >= 3).mean() == pytest.approx(overlap_p(3, k, n), abs=0.03)
    assert overlap_p(3, k, n) == pytest.approx(hypergeom.sf(2, n, k, k))


def test_t1_uneven_sets_overlap_more_by_the_sum_of_products() -> None:
    rng, n, k = np.random.default_rng(1), 32, 4
    tilt = np.linspace(0, 3, n)
    drawn = np.argsort(tilt + rng.gumbel(size=(2, 4000, n)), axis=2)[:, :, -k:]
    found = overlap(drawn[0], drawn[1], n)
    used = np.stack([np.bincount(part.ravel(), minlength=n) / len(part) for part in drawn])
    assert found.chance * k == pytest.approx((used[0] * used[1]).sum())
    assert found.shared.mean() * k == pytest.approx((used[0] * used[1]).sum(), rel=0.05)
    assert found.chance * k > 1.3 * expected_overlap(k, n)


@pytest.fixture(scope="module")
def two_tasks() -> tuple[Features, Features]:
    return made_features("a", {3: 2.0, 20: 2.0}), made_features("b", {9: 2.0, 40: 2.0}, seed=1)


def test_t2_transfer_averages_one_half_over_the_labels_polarity(two_tasks: tuple[Features, Features]) -> None:
    source, target = (made_findings(one) for one in two_tasks)
    turned = made_findings(_with(two_tasks[1], y=1 - two_tasks[1].y))
    values = [
        pd.DataFrame(cross_task_rows(source, one, QUICK)).set_index("method").loc["transfer_accuracy", "value"]
        for one in (target, turned)
    ]
    assert sum(values) == pytest.approx(1)


def _with(features: Features, *, y: np.ndarray) -> Features:
    return Features(**{**vars(features), "y": y})


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_t3_class_means_on_a_centred_component_are_opposite_whatever_the_labels(share: float) -> None:
    features = made_features("noise", {}, rows=200)
    y = (np.random.default_rng(2).permutation(200) < 200 * share).astype(int)
    found, projection = principal_component(_with(features, y=y), slice(0, 16), n_permutations=19, n_shuffles=2)
    zero, one = found["means"]
    assert one * share == pytest.approx(-zero * (1 - share))
    assert found["class_share"] == pytest.approx(share * (1 - share) * (one - zero) ** 2 / projection[:, 0].var())


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_t4_total_divergence_is_bounded_and_follows_from_the_pooled_one(share: float) -> None:
    rng, n = np.random.default_rng(3), 400
    y = (np.arange(n) < share * n).astype(int)
    x = rng.normal(size=(n, 50)) + np.outer(y, np.linspace(0, 30, 50))
    x[:, -1] = y  # no spread within the classes
    moments = fold_class_sums(x, y, np.zeros(n, int)).total()
    total, pooled = (divergence(*moments, sigma=sigma) for sigma in ("total", "pooled"))
    w = share * (1 - share)
    assert total.max() == pytest.approx(1 / math.sqrt(w), rel=1e-6)
    assert total[:-1] == pytest.approx(pooled[:-1] / np.sqrt(1 + w * pooled[:-1] ** 2), rel=1e-6)
    assert total == pytest.approx([abs(np.corrcoef(column, y)[0, 1]) / math.sqrt(w) for column in x.T], rel=1e-6)


def test_t5_leaving_layers_that_hold_no_neuron_of_the_circuit_loses_nothing() -> None:
    features = made_features("early", {3: 6.0, 9: 6.0, 12: 6.0})  # all in layer 0
    found = nested_cv(features.x, features.y, features.folds, [3])
    early = nested_cv(features.x, features.y, features.folds, [3], allowed=features.columns.of_layers(0))
    assert features.columns.layer_of[found.selected].max() == 0
    assert np.array_equal(found.correct, early.correct)
    assert np.array_equal(found.scores, early.scores)


@pytest.mark.parametrize(("tokens", "experts", "k"), [(8, 64, 8), (64, 64, 8), (8, 8, 2), (16, 256, 8)])
def test_t6_uniform_routing_gives_the_cosine_of_the_closed_form(tokens: int, experts: int, k: int) -> None:
    assert simulated_cosine(tokens, experts, k, pairs=400) == pytest.approx(float(random_cosine(tokens, experts, k)), rel=0.02)


def test_t7_features_chosen_on_all_rows_pass_on_noise_as_the_closed_form_says(page: dict[str, Any]) -> None:
    rows, features, k = 200, 1000, 5
    y, folds = np.arange(rows) % 2, np.arange(rows) // 2 % 5
    leaked, honest = [], []
    for seed in range(30):
        x = np.random.default_rng(seed).standard_normal((rows, features)).astype(np.float32)
        leaked.append(nested_cv(x, y, folds, [k], selection="global").accuracy[0])
        honest.append(nested_cv(x, y, folds, [k]).accuracy[0])
    assert np.mean(leaked) == pytest.approx(page["leaked_accuracy"](rows, features, k), abs=0.02)
    assert np.mean(honest) == pytest.approx(0.5, abs=4 * np.std(honest) / math.sqrt(len(honest)))
    # the figures that STATISTICS and nested.py give, measured there
    assert page["leaked_accuracy"](200, 131072, 10) == pytest.approx(0.809, abs=0.001)
    assert page["leaked_accuracy"](1000, 131072, 10) == pytest.approx(0.652, abs=0.001)


def test_t7_permuting_the_held_out_labels_gives_one_half_exactly() -> None:
    """Over all labels of a held-out half with as many of each class, whatever was learnt: its balanced accuracy is 1/2."""
    rng = np.random.default_rng(4)
    x, y, folds = rng.normal(size=(12, 30)), np.array([0, 1] * 6), np.repeat([0, 1], 6)
    found = []
    for mask in range(64):
        labels = np.array([mask >> i & 1 for i in range(6)])
        if labels.sum() == 3:
            found.append(nested_cv(x, np.concatenate([y[:6], labels]), folds, [2]).correct[0, 6:].mean())
    assert np.mean(found) == pytest.approx(0.5)


def test_t8_a_skip_connection_alone_makes_one_coordinate_fill_many_places(page: dict[str, Any]) -> None:
    layers, width, rows, k = 6, 600, 80, 120
    y, groups = np.arange(rows) % 2, np.arange(rows).astype(str)
    plain = made_features("walk", {}, rows=rows, layers=layers, width=width)
    steps = plain.x.reshape(rows, layers, width)
    pairs = {}
    for name, x in (("carried", steps.cumsum(axis=1)), ("apart", steps)):
        here = Features(plain.task, plain.columns, x.reshape(rows, -1), plain.embed, y, groups, plain.folds, 0)
        code = coordinates(here.columns)[permuted_rankings(here, "pooled", n=40, k=k, seed=0)]
        pairs[name] = np.mean([(n * (n - 1) / 2).sum() for n in map(np.bincount, code)])
    assert pairs["carried"] == pytest.approx(page["expected_pairs"](layers, width, k), rel=0.1)
    assert pairs["apart"] == pytest.approx(k * (k - 1) / 2 * (layers - 1) / (layers * width - 1), rel=0.15)
    assert pairs["carried"] > 8 * pairs["apart"]


ATOMS, ACTIVE, THRESHOLD = 64, 4, 0.2


@pytest.fixture(scope="module")
def dictionary() -> tuple[DictionaryTeacher, ArrayPairs, ArrayPairs]:
    """A teacher with orthonormal read and write directions, its sparse inputs, and Gaussian ones of the same covariance."""
    teacher = DictionaryTeacher(DictionarySettings(atoms=ATOMS, active=ACTIVE, width=ATOMS, threshold=THRESHOLD, tokens=40_000))
    teacher.outputs = torch.linalg.qr(torch.randn(ATOMS, ATOMS, generator=torch.Generator().manual_seed(5))).Q
    sparse = dictionary_pairs(teacher)
    return teacher, sparse, control_pairs("gaussian", sparse, teacher)


@pytest.mark.parametrize(("active", "exact"), [(ACTIVE, True), (2 * ACTIVE, True), (ACTIVE - 1, False)])
def test_t9_a_layer_of_sparse_inputs_is_a_mixture_of_single_neurons(
    dictionary: tuple[DictionaryTeacher, ArrayPairs, ArrayPairs], active: int, exact: bool
) -> None:
    teacher, sparse, gaussian = dictionary
    student = Student(StudentSpec(kind="transcoder", experts=ATOMS, active=active), LayerShape(ATOMS, ATOMS))
    assert student.experts is not None
    with torch.no_grad():
        student.experts.w_in.copy_(teacher.atoms)
        student.experts.bias.fill_(-THRESHOLD)
        student.experts.w_out.copy_(teacher.outputs)
    assert (evaluate(student, sparse).fvu < 1e-8) is exact
    assert evaluate(student, gaussian).fvu > 0.05


def test_t10_a_router_of_low_rank_names_the_atoms_of_sparse_inputs(page: dict[str, Any]) -> None:
    teacher = DictionaryTeacher(DictionarySettings(atoms=256, active=2, width=256))
    rng, coefficients = torch.Generator().manual_seed(0), np.array([1.0, 1.5])
    wrong = {}
    for rank in (8, 32, 96):
        missed = []
        for _ in range(20):
            router = LowRankRouter(256, 256, rank)
            with torch.no_grad():
                router.down.copy_(torch.randn(rank, 256, generator=rng) / rank**0.5)
                router.up.copy_(teacher.atoms @ router.down.T)
            which = torch.rand(100, 256, generator=rng).topk(2, dim=1).indices
            x = torch.einsum("k,nkd->nd", torch.from_numpy(coefficients).float(), teacher.atoms[which])
            routed, _ = router.choose(x, 2)
            missed.append((routed.index.sort(1).values != which.sort(1).values).any(1).float().mean().item())
        wrong[rank] = np.mean(missed)
    assert all(wrong[rank] <= page["wrong_choice"](rank, 256, coefficients) * 1.3 + 0.002 for rank in wrong)
    assert wrong[8] > 0.5 > 0.01 > wrong[96]


def test_t11_the_error_ends_at_s_on_sparse_inputs_and_not_on_gaussian_ones(
    page: dict[str, Any], dictionary: tuple[DictionaryTeacher, ArrayPairs, ArrayPairs]
) -> None:
    teacher, sparse, gaussian = dictionary
    share = ACTIVE / ATOMS
    mean = 1.5 * share
    deviation = math.sqrt(share * (1.5**2 + 1 / 12) - mean**2)
    for k in (1, 2, 3, 4, 8, 16):
        expected = (
            page["sparse_error"](k, ATOMS, ACTIVE, THRESHOLD),
            page["gaussian_error"](k / ATOMS, mean, deviation, THRESHOLD),
        )
        for pairs, value in zip((sparse, gaussian), expected, strict=True):
            train = pairs.blocks["train"]
            bias = (train.y - teacher(train.x, largest=k)).mean(0)

            def own(x: torch.Tensor, k: int = k, bias: torch.Tensor = bias) -> torch.Tensor:
                return teacher(x, largest=k) + bias

            assert fvu(own, pairs) == pytest.approx(value, abs=0.04)
        assert (expected[0] == 0) is (k >= ACTIVE)
        assert expected[1] > 0


def test_t11_a_dense_student_leaves_the_same_share_on_both(
    dictionary: tuple[DictionaryTeacher, ArrayPairs, ArrayPairs],
) -> None:
    teacher, *data = dictionary
    for pairs in data:
        hidden = torch.relu(pairs.blocks["train"].x @ teacher.atoms.T - THRESHOLD)
        mean = hidden.mean(0)
        spread = torch.linalg.eigvalsh(torch.cov(hidden.T)).flip(0)
        for width in (16, 32):

            def copied(x: torch.Tensor, width: int = width, middle: torch.Tensor = mean) -> torch.Tensor:
                own = torch.relu(x @ teacher.atoms.T - THRESHOLD)
                return torch.where(torch.arange(ATOMS) < width, own, middle) @ teacher.outputs

            least = float(spread[width:].sum() / spread.sum())
            assert least - 0.02 < fvu(copied, pairs) < 1 - width / ATOMS + 0.03
            assert least == pytest.approx(1 - width / ATOMS, abs=0.04)


def test_t12_a_shared_neuron_is_cheaper_than_two_and_a_linear_layer_has_no_axes() -> None:
    world = World(tasks=2, seeds=1)
    network = Networks("dense", world, 8)
    x = world.sample(50, torch.Generator().manual_seed(0), world.rotations())[0]
    before = network.heads(network.hidden(x))
    scale = torch.linspace(0.5, 2, 8)
    network.w_in, network.w_out = network.w_in * scale, network.w_out / scale[:, None]
    assert torch.allclose(network.heads(network.hidden(x)), before, atol=1e-5)  # a ReLU's scale is free, and only that
    w, v = network.w_in[0].norm(dim=0), network.w_out[0].norm(dim=1)
    best = (v / w).sqrt()
    assert torch.allclose(((w * best) ** 2 + (v / best) ** 2) / 2, w * v)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    linear, turned = x @ network.w_in @ network.w_out, x @ (network.w_in @ turn) @ (turn.T @ network.w_out)
    assert torch.allclose(linear, turned, atol=1e-4)
    assert (network.w_in @ turn).square().sum() == pytest.approx(network.w_in.square().sum().item(), rel=1e-5)


def test_t13_two_directions_in_any_basis_look_like_circuits_of_their_own() -> None:
    """No neuron is special, and yet each ranking repeats itself and shares no more than chance with the other."""
    rng, n, width, k = np.random.default_rng(6), 400, 64, 8
    directions = np.linalg.qr(rng.normal(size=(width, 2)))[0].T
    data = []
    for direction in directions:
        y = np.arange(n) % 2
        data.append((rng.normal(size=(n, width)) + np.outer(y - 0.5, 3 * direction), y))
    found = separateness(data[0], data[1], k, 0)
    assert found["gap_low"] > 0.1
    assert found["split_half_cross"] / k == pytest.approx(k / width, abs=0.1)
    again = separateness(data[0], data[0], k, 0)
    assert again["gap_low"] < 0.1  # of one direction there are not two circuits


def test_the_toy_world_has_the_features_and_the_sizes_that_it_says() -> None:
    own, common = World(tasks=8), World(tasks=8, shared=1.0)
    assert len({f for t in range(8) for f in own.features(t)}) == 64
    assert {f for t in range(8) for f in common.features(t)} == set(range(8))
    assert torch.equal(common.weights().T @ common.weights(), 8 * torch.eye(8))  # answers do not follow each other
    for tasks in (2, 8):
        world = World(tasks=tasks, seeds=1)
        dense, modules, mask = (Networks(kind, world, 64) for kind in ("dense", "modules", "random mask"))
        assert modules.width == module_width(64, tasks) == mask.width
        assert 0.9 * dense.parameters < modules.parameters == mask.parameters <= dense.parameters


def test_circuits_part_where_features_do_and_not_where_they_are_common() -> None:
    found = {}
    for shared in (0.0, 1.0):
        world = World(tasks=2, shared=shared, seeds=2)
        network = Networks("dense", world, 48).train(steps=500)
        rng = torch.Generator().manual_seed(3)
        read = []
        for task in (0, 1):
            x, y = world.sample(800, rng, world.rotations())
            read.append([(h.numpy(), a[:, task].numpy().astype(int)) for h, a in zip(network.hidden(x), y, strict=True)])
        rows = [separateness(a, b, 6, 0) for a, b in zip(*read, strict=True)]
        found[shared] = np.mean([row["split_half_cross"] / row["expected"] for row in rows])
    assert found[0.0] < 0.5 < found[1.0]


def test_the_saved_verdicts_are_those_of_the_saved_cells() -> None:
    data, cells, built = load()
    assert EVIDENCE.is_file()
    saved = [(c["statement"], c["outcome"], c["explanation"]) for c in data["claims"]]
    assert saved == [(c["statement"], c["outcome"], c["explanation"]) for c in map(claim_json, judged(cells, built))]
