"""Transfer between models: planted rotations are found, independent models show nothing, p-values are uniform."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest, ortho_group

from moescope.errors import InputError
from moescope.routing import RoutingTrace, TracedSequence
from moescope.studies.transfer.alignment import Alignment, held_out, rsa, signature_similarity
from moescope.studies.transfer.claims import counterpart_claims
from moescope.studies.transfer.counterparts import counterparts, same_shape
from moescope.studies.transfer.settings import TransferSettings
from moescope.studies.transfer.study import transfer
from moescope.study.rows import FoldRows


def clustered(n: int = 80, d: int = 12, seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Signatures of four categories around four centres, (n, d), and categories (n,)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 4
    return rng.normal(size=(4, d))[y] + spread * rng.normal(size=(n, d)), y


def folds(n: int) -> FoldRows:
    return FoldRows("prompts", np.arange(n), (np.arange(n) // 4) % 5)


def test_procrustes_recovers_a_planted_rotation() -> None:
    a, y = clustered()
    rotation = ortho_group.rvs(12, random_state=1)
    b = 2.5 * a @ rotation + np.arange(12)
    alignment = Alignment.fit(a, b, 12)
    assert np.allclose(alignment.carry(a), alignment.place(b), atol=1e-8)
    assert alignment.scale == pytest.approx(2.5)
    recovered = alignment.pca_a.components_.T @ alignment.rotation @ alignment.pca_b.components_
    assert np.allclose(recovered, rotation, atol=1e-8)
    held = held_out(a, b, y, folds(80), dimensions=12)
    assert held.explained > 0.999
    assert held.matched.all()
    assert (held.predicted == y).mean() > 0.8


def test_a_shared_part_is_carried_and_private_noise_is_not() -> None:
    a, y = clustered()
    rng = np.random.default_rng(5)
    b = a @ ortho_group.rvs(12, random_state=1) + 0.5 * rng.normal(size=a.shape)
    held = held_out(a, b, y, folds(80), dimensions=12)
    assert 0.5 < held.explained < 0.95
    assert held.chance < held.matched.mean()


def test_independent_models_do_not_align() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(80) % 4
    held = held_out(rng.normal(size=(80, 12)), rng.normal(size=(80, 15)), y, folds(80), dimensions=12)
    assert held.explained < 0.05
    assert held.matched.mean() < held.chance + 0.12
    assert (held.predicted == y).mean() < 0.45


def test_a_category_that_only_a_carries_is_not_read_through_b() -> None:
    """B is noise. With rotation and classifier fitted on the same prompts, each would lead the other to the category."""
    hits = []
    for seed in range(8):
        a, y = clustered(48, seed=seed, spread=0.3)
        b = np.random.default_rng(100 + seed).normal(size=(48, 12))
        hits.append((held_out(a, b, y, folds(48), dimensions=12).predicted == y).mean())
    assert np.mean(hits) < 0.32


def test_prompts_alike_in_both_are_seen_through_any_rotation_of_their_spaces() -> None:
    a, y = clustered(40)
    same = rsa(signature_similarity(a), signature_similarity(a @ ortho_group.rvs(12, random_state=0)), y, n_permutations=99)
    assert same.rho == pytest.approx(1.0)
    assert same.p == same.p_within == 0.02
    other = rsa(signature_similarity(a), signature_similarity(np.random.default_rng(1).normal(size=(40, 12))), y)
    assert other.p > 0.05
    assert abs(other.rho) < 0.15


def test_likeness_by_category_alone_is_told_from_likeness_within() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 4
    a, b = (rng.normal(size=(4, 12))[y] * 3 + rng.normal(size=(40, 12)) for _ in range(2))
    found = rsa(signature_similarity(a), signature_similarity(b), y, n_permutations=199)
    assert found.p <= 0.02
    assert found.p_within > 0.05


def test_likeness_by_shared_tokens_alone_is_taken_off() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(40, 12))
    a, b = (tokens + 0.5 * rng.normal(size=(40, 12)) for _ in range(2))
    found = rsa(
        signature_similarity(a),
        signature_similarity(b),
        np.zeros(40, int),
        tokens=signature_similarity(tokens),
        n_permutations=199,
    )
    assert found.p == 0.01
    assert found.rho > 0.4
    assert found.partial < found.rho / 2


def test_p_is_uniform_where_nothing_is_shared() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(12) % 3
    similar = [[signature_similarity(rng.normal(size=(12, 5))) for _ in range(2)] for _ in range(200)]
    found = [rsa(a, b, y, n_permutations=49, seed=i) for i, (a, b) in enumerate(similar)]
    for name in ("p", "p_within"):
        assert kstest([getattr(f, name) for f in found], "uniform").pvalue > 0.01


def made_trace(seed: int, n: int = 40, experts: int = 8, sharp: float = 3.0, layers: tuple[int, ...] = (1, 3)) -> RoutingTrace:
    """Forty prompts of four categories and ten topics; each category prefers experts of its own."""
    rng = np.random.default_rng(seed)
    preference = rng.normal(size=(4, len(layers), experts)) * sharp
    ids, owner = [], []
    for prompt in range(n):
        noise = rng.gumbel(size=(20, len(layers), experts))
        ids.append(np.argsort(-(preference[prompt % 4] + noise), axis=-1)[..., :2])
        owner += [prompt] * 20
    names = ("code", "math", "story", "factual")
    return RoutingTrace(
        layers,
        (experts,) * len(layers),
        np.concatenate(ids).astype(np.uint8),
        None,
        np.array(owner, dtype=np.int32),
        np.tile(np.arange(20, dtype=np.int32), n),
        np.zeros(20 * n, dtype=bool),
        np.tile(np.arange(20, dtype=np.int32), n),
        tuple(TracedSequence(f"p{i}", names[i % 4], f"topic{i // 4}/t") for i in range(n)),
        {"model": f"m{seed}"},
    ).validate()


SMALL = TransferSettings(n_permutations=199, n_alignments=159, dimensions=6, n_folds=2)


def test_two_models_that_route_by_category_share_a_classifier() -> None:
    result = transfer(made_trace(0), made_trace(1, experts=12, layers=(0, 2)), settings=SMALL)
    alike, within, _, read = result.claims[:4]
    assert alike.measured > 0.5
    assert alike.p == 0.01
    assert (alike.id, alike.outcome, alike.explanation) == ("S10", "holds", "none found")
    assert within.outcome == "inconclusive"
    assert read.measured > 0.9
    assert read.control is not None
    assert read.control.value < 0.5
    assert read.outcome == "holds"
    assert len({c.family for c in result.claims[:4]}) == 1
    assert "counterparts" not in result.tables
    assert len(result.table("similarity")) == 1 + 4
    (rows,) = result.rows
    assert (rows["folds"], rows["judge"]) == (2, {"rows": 40, "groups": 10})  # topics whole
    assert [c["control"] for c in result.meta["controls"]] == ["shuffled pairings"]


def test_a_model_that_routes_at_random_shares_none() -> None:
    a, b = (replace(trace, tokens=None) for trace in (made_trace(0), made_trace(1, sharp=0.0)))
    result = transfer(a, b, settings=SMALL)
    assert "not run: shared tokens held fixed (a trace holds no token ids)" in result.claims[0].words
    assert {c.outcome for c in result.claims[:4]} <= {"inconclusive", "contradicted"}
    assert result.claims[3].outcome == "inconclusive"  # forty prompts cannot show that a share is within 3 points of chance


def test_counterparts_know_their_experts_and_notice_renumbering() -> None:
    a = made_trace(0)
    assert same_shape(a, a)
    same = counterparts(a, a)
    for values in (same.same_set, same.overlap, same.own_match, same.cosine):
        assert np.allclose(values, 1)
    order = np.array([1, 2, 3, 4, 5, 6, 7, 0], dtype=np.uint8)
    moved = counterparts(a, replace(a, ids=order[a.ids]))
    assert (moved.own_match == 0).all()
    assert (moved.overlap < 0.7).all()
    rng = np.random.default_rng(0)
    flip = rng.random(len(a)) < 0.25
    ids = a.ids.copy()
    ids[flip] = np.argsort(rng.random((int(flip.sum()), 2, 8)), axis=-1)[..., :2]
    some = counterparts(a, replace(a, ids=ids))
    assert np.allclose(some.own_match, 1)
    assert ((some.same_set > 0.74) & (some.same_set < 0.82)).all()
    assert (some.chance < some.overlap).all()
    found = counterparts(a, a)
    claim = counterpart_claims(pd.DataFrame({"layer": a.layers, **dataclasses.asdict(found)}))[-1]
    assert claim.statement == "a prompt keeps its signature from A to B"
    assert claim.measured == pytest.approx(1.0)


def test_other_prompts_and_too_few_are_refused() -> None:
    a = made_trace(0)
    with pytest.raises(InputError, match="'p39' is in one alone"):
        transfer(a, a.select(range(39)), settings=SMALL)
    with pytest.raises(InputError, match="too few to compare"):
        rsa(np.eye(3), np.eye(3), np.zeros(3, int))
    bare = replace(a, sequences=tuple(TracedSequence(s.id) for s in a.sequences))
    with pytest.raises(InputError, match="no categories"):
        transfer(bare, bare, settings=SMALL)
    for name in ("n_alignments", "n_permutations"):
        with pytest.raises(InputError, match=f"{name}: 19 draws cannot show anything .* at least 159"):
            TransferSettings(**{name: 19})
    with pytest.raises(InputError, match="active: must be below n_experts=4, got 4"):
        TransferSettings(n_experts=4)
    # the order of the prompts is no difference
    shuffled = a.select([f"p{i}" for i in np.random.default_rng(0).permutation(40)])
    result = transfer(a, shuffled, settings=SMALL)
    assert result.claims[0].measured == pytest.approx(1.0)
    assert result.claims[-1].statement == "a prompt keeps its signature from A to B"
    assert result.claims[-1].outcome == "descriptive"
