"""Streamed moments equal whole-batch moments, merge in any order, and go on after an interruption bit for bit."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moescope.capture import Encoded, Moments, batches, capture, moments
from moescope.capture.encode import pad
from moescope.capture.reduce import RowReducer
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.types import Site
from tests.architectures import VOCAB, tiny_model

N, FOLDS, CLASSES = 40, 3, 2
SITES = [Site("resid", 0), Site("mlp_out", 2), Site("resid", 3)]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def texts() -> Encoded:
    rng = np.random.default_rng(0)
    return Encoded.from_ids([rng.integers(1, VOCAB - 4, n) for n in rng.integers(1, 25, N)])


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, CLASSES, N)


@pytest.fixture(scope="module")
def folds() -> np.ndarray:
    return np.random.default_rng(2).integers(0, FOLDS, N)


def vectors(model: LoadedModel, texts: Encoded, position: Any) -> list[np.ndarray]:
    """Per text (vectors, S, D) in float64, one text at a time."""
    found = []
    with capture(model, SITES) as session:
        for ids in texts:
            seen = session.run(torch.from_numpy(ids.astype(np.int64))[None])
            stacked = torch.stack([seen[site][0] for site in SITES], dim=1).double().numpy()  # (T, S, D)
            found.append(
                {"final": stacked[-1:], "mean": stacked.mean(0, keepdims=True), "all": stacked, 0: stacked[:1]}[position]
            )
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("position", ["final", "mean", "all", 0])
def test_streamed_equals_whole(
    model: LoadedModel, texts: Encoded, labels: np.ndarray, folds: np.ndarray, position: Any, side: Any
) -> None:
    result = moments(model, texts, SITES, labels, folds, position=position, batch_tokens=60, padding_side=side)
    assert len(batches(texts.lengths, 60)) > 5
    assert result.sites == tuple(SITES)
    rows = vectors(model, texts, position)
    for fold in range(FOLDS):
        for held_out, part in ((True, result.fold(fold)), (False, result.train(fold))):
            for label in range(CLASSES):
                chosen = np.concatenate([rows[i] for i in range(N) if labels[i] == label and (folds[i] == fold) == held_out])
                assert part.n[label] == len(chosen)
                assert np.abs(part.mean[label] - chosen.mean(0)).max() <= 1e-5
                assert np.abs(part.variance()[label] - chosen.var(0)).max() <= 1e-4 * chosen.var(0).max()
    everything = np.concatenate([rows[i] for i in range(N) if labels[i] == 1])
    assert np.abs(result.total().mean[1] - everything.mean(0)).max() <= 1e-5
    assert np.allclose(result.total().variance(ddof=1)[1], everything.var(0, ddof=1), rtol=1e-4, atol=1e-6)


def random_moments(seed: int) -> Moments:
    """Of a few float64 vectors, some folds and classes empty, at a large offset."""
    rng = np.random.default_rng(seed)
    n = rng.integers(0, 4, (FOLDS, CLASSES))
    part = Moments.zeros(FOLDS, CLASSES, SITES, 5)
    for f, c in np.ndindex(*n.shape):
        rows = 1e3 + rng.standard_normal((n[f, c], len(SITES), 5))
        if len(rows):
            part.n[f, c], part.mean[f, c], part.m2[f, c] = len(rows), rows.mean(0), ((rows - rows.mean(0)) ** 2).sum(0)
    return part


def same(a: Moments, b: Moments, tolerance: float = 1e-11) -> bool:
    return (
        np.array_equal(a.n, b.n)
        and np.allclose(a.mean, b.mean, rtol=tolerance, atol=0)
        and np.allclose(a.m2, b.m2, rtol=1e-8, atol=1e-8)
    )


def test_merge_is_associative_and_commutative() -> None:
    a, b, c, d = map(random_moments, range(4))
    left, right = reduce(Moments.merge, [a, b, c, d]), a.merge(b.merge(c.merge(d)))
    assert same(left, right)
    assert same(left, d.merge(b).merge(c).merge(a))
    nothing = Moments.zeros(FOLDS, CLASSES, SITES, 5)
    for merged in (a.merge(nothing), nothing.merge(a)):
        assert all(np.array_equal(getattr(merged, name), getattr(a, name)) for name in ("n", "mean", "m2"))


def test_parts_merge_into_the_whole(model: LoadedModel, texts: Encoded, labels: np.ndarray, folds: np.ndarray) -> None:
    order = np.argsort(labels, kind="stable")  # the first part has one class only
    texts = Encoded.from_ids([texts[int(i)] for i in order])
    labels, folds = labels[order], folds[order]
    whole = moments(model, texts, SITES, labels, folds, position="all")
    parts = [
        moments(model, texts.rows(start, stop), SITES, labels[start:stop], folds[start:stop], position="all")
        for start, stop in ((0, 7), (7, 8), (8, 31), (31, N))
    ]
    assert parts[0].n.shape[1] == 1
    for merged in (reduce(Moments.merge, parts), reduce(Moments.merge, parts[::-1])):
        assert np.array_equal(merged.n, whole.n)
        assert np.abs(merged.mean - whole.mean).max() <= 1e-5
        assert np.allclose(merged.m2, whole.m2, rtol=1e-4, atol=1e-5)


def test_moments_of_other_sites_do_not_merge() -> None:
    a = random_moments(0)
    with pytest.raises(InputError, match="resid:0, mlp_out:2, resid:3 x 5 with those of resid:1 x 5"):
        a.merge(Moments.zeros(FOLDS, CLASSES, [Site("resid", 1)], 5))


def test_squares_are_taken_about_the_mean() -> None:
    """A massive activation: an offset of 3,000 with a spread of 0.1, where sums of squares in float32 lose all digits."""
    rng = np.random.default_rng(3)
    values = torch.from_numpy((3000 + 0.1 * rng.standard_normal((6, 40, 8))).astype(np.float32))
    batch = pad(Encoded.from_ids([[1] * 40] * 6), np.arange(6))
    reducer = RowReducer(batch, "all", None)
    site = Site("resid", 0)
    rows = reducer.collect({site: reducer(site, values)}, [site])
    result = Moments.zeros(1, 1, [site], 8).update(rows, np.zeros(6, int), np.zeros(6, int))
    flat = values.double().flatten(0, 1)
    exact = flat.var(0, correction=0).numpy()
    naive = ((flat.float() ** 2).mean(0) - flat.float().mean(0) ** 2).numpy()
    assert np.allclose(result.total().variance()[0, 0], exact, rtol=1e-3)
    assert np.abs(naive / exact - 1).max() > 1


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("position", ["all", "mean", "final"])
def test_what_stands_at_padding_does_not_matter(garbage: float, position: Any) -> None:
    batch = pad(Encoded.from_ids([[1, 2, 3, 4], [5], [6, 7]]), np.arange(3), side="left")
    values = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    site, results = Site("resid", 0), []
    for filler in (0.0, garbage):
        reducer = RowReducer(batch, position, None)
        filled = torch.where(batch.mask[:, :, None], values, filler)
        results.append(reducer.collect({site: reducer(site, filled)}, [site]))
    assert torch.isfinite(results[1].mean).all()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- checkpoint ----------------------------------------------------------------------------------------------------------


class Interrupt(Exception):
    pass


def test_an_interrupted_run_goes_on_bit_for_bit(
    model: LoadedModel, texts: Encoded, labels: np.ndarray, folds: np.ndarray, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"position": "all", "batch_tokens": 30, "checkpoint_every": 2}
    whole = moments(model, texts, SITES, labels, folds, **options)
    file = tmp_path / "state.safetensors"
    seen: list[int] = []

    def stop_half_way(done: int, total: int) -> None:
        if done > total // 2:
            raise Interrupt

    with pytest.raises(Interrupt):
        moments(model, texts, SITES, labels, folds, checkpoint=file, progress=stop_half_way, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    resumed = moments(
        model, texts, SITES, labels, folds, checkpoint=file, progress=lambda done, _: seen.append(done), **options
    )
    assert seen[0] > 5  # it did not begin anew
    assert seen[-1] == N
    for name in ("n", "mean", "m2"):
        assert np.array_equal(getattr(resumed, name), getattr(whole, name))

    calls = []
    handle = model.structure.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    again = moments(model, texts, SITES, labels, folds, checkpoint=file, **options)
    handle.remove()
    assert not calls  # a finished run is only read
    assert np.array_equal(again.m2, whole.m2)


def test_a_checkpoint_of_another_run_is_refused(
    model: LoadedModel, texts: Encoded, labels: np.ndarray, folds: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / "state.safetensors"
    moments(model, texts, SITES, labels, folds, checkpoint=file)
    content = file.read_bytes()
    other = Encoded.from_ids([ids[::-1].copy() for ids in texts])
    for arguments, options, word in (
        ((tiny_model("llama", seed=1), texts, SITES, labels, folds), {}, "model"),
        ((model, other, SITES, labels, folds), {}, "texts"),
        ((model, texts, SITES, 1 - labels, folds), {}, "labels"),
        ((model, texts, SITES, labels, labels), {}, "labels"),
        ((model, texts, SITES[::-1], labels, folds), {}, "sites"),
        ((model, texts, SITES, labels, folds), {"position": "mean"}, "settings"),
        ((model, texts, SITES, labels, folds), {"batch_tokens": 77}, "settings"),
    ):
        with pytest.raises(InputError, match=f"was written with other {word}; delete it or choose") as error:
            moments(*arguments, checkpoint=file, **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    file.write_bytes(content[:-10])
    with pytest.raises(InputError, match="damaged or not a safetensors file"):
        moments(model, texts, SITES, labels, folds, checkpoint=file)
    with pytest.raises(InputError, match="checkpoint_every: 0"):
        moments(model, texts, SITES, labels, folds, checkpoint=file, checkpoint_every=0)


def test_save_and_load(tmp_path: Path) -> None:
    part = random_moments(5)
    part.save(tmp_path / "m.safetensors")
    back = Moments.load(tmp_path / "m.safetensors")
    assert back.sites == part.sites
    assert all(np.array_equal(getattr(back, name), getattr(part, name)) for name in ("n", "mean", "m2"))
    with pytest.raises(InputError, match="no such file"):
        Moments.load(tmp_path / "gone.safetensors")
    (tmp_path / "other").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="damaged or not"):
        Moments.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("labels", "folds", "message"),
    [
        ([0, 1], None, r"labels: shape \(2,\), but there are 40 texts"),
        ([0.5] * N, None, "labels: must be whole numbers from 0"),
        ([-1] * N, None, "labels: must be whole numbers from 0"),
        ([0] * N, [[0]] * N, r"folds: shape \(40, 1\)"),
    ],
)
def test_labels_that_do_not_fit(model: LoadedModel, texts: Encoded, labels: Any, folds: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        moments(model, texts, SITES, labels, folds)


def test_sites_of_two_widths(model: LoadedModel, texts: Encoded) -> None:
    with pytest.raises(InputError, match="resid:0 has width 32 but mlp_act:1 has 48; read sites of one width at a time"):
        moments(model, texts, [Site("resid", 0), Site("mlp_act", 1)], [0] * N)
    with pytest.raises(InputError, match="sites: none were given"):
        moments(model, texts, [], [0] * N)


def test_variance_of_too_few_vectors_is_nan() -> None:
    part = Moments.zeros(1, 2, SITES, 5)
    part.n[0] = [1, 3]
    variance = part.total().variance(ddof=1)
    assert np.isnan(variance[0]).all()
    assert (variance[1] == 0).all()
