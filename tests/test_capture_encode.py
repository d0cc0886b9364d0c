"""Texts to token ids to batches, and which tokens of a text are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moescope.capture import Encoded, activations, batches, capture, encode, moments
from moescope.capture.encode import pad
from moescope.errors import InputError
from moescope.models import LoadedModel, from_model
from moescope.models.inputs import padding_id
from moescope.types import Site
from tests.architectures import BOS, EOS, PAD, build, tiny_model, tiny_tokenizer

TEXTS = ["hello", "a", "longer text", "mid size"]


def test_ids_and_special_marks() -> None:
    encoded = encode(tiny_model("bert"), TEXTS)  # <bos> text <eos>
    assert encoded.lengths.tolist() == [len(text) + 2 for text in TEXTS]
    for row, ids in enumerate(encoded):
        assert (ids[0], ids[-1]) == (BOS, EOS)
        assert encoded.special_of(row).tolist() == [True] + [False] * len(TEXTS[row]) + [True]
    plain = encode(tiny_model("bert"), TEXTS, special_tokens="none")
    assert all(np.array_equal(a[1:-1], b) for a, b in zip(encoded, plain, strict=True))
    assert not plain.special.any()
    assert plain.sha256 != encoded.sha256 == encode(tiny_model("bert"), TEXTS).sha256


def test_a_special_token_written_in_the_text_is_text() -> None:
    encoded = encode(tiny_model("llama"), ["a<eos>b"])
    assert encoded[0][2] == EOS
    assert encoded.special.tolist() == [True, False, False, False]


def test_a_long_text_loses_its_start_and_keeps_its_special_tokens() -> None:
    model = tiny_model("bert")
    with pytest.warns(UserWarning, match="2 of 4 texts were longer than 7 tokens; the start of each was dropped"):
        encoded = encode(model, ["12345", "123456", "abcdefghij", "x"], max_tokens=7)
    whole = encode(model, ["56789", "fghij"])
    assert encoded.lengths.tolist() == [7, 7, 7, 3]
    assert np.array_equal(encoded[2], whole[1])
    assert encoded.special_of(2).tolist() == [True] + [False] * 5 + [True]
    with pytest.warns(UserWarning, match="longer than 256"):  # the positions that the model has
        assert encode(model, ["z" * 300]).lengths.tolist() == [256]


def test_encoded_passes_through_and_splits() -> None:
    model = tiny_model("llama")
    encoded = encode(model, TEXTS)
    assert encode(model, encoded) is encoded
    part = encoded.rows(1, 3)
    assert (len(part), part.first) == (2, 1)
    assert np.array_equal(part[0], encoded[1])
    assert np.array_equal(part[-1], encoded[2])
    assert [len(row) for row in encoded[1:]] == encoded.lengths[1:].tolist()
    with pytest.raises(IndexError):
        encoded[4]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("one string", {}, "one string was given; give a list"),
        (["a", ""], {}, r"text 1: the text is empty \(no tokens\)"),
        (["a", None], {}, "text 1: None is not a string"),
        (["a", float("nan")], {}, "text 1: nan is not a string"),
        (["a"] * 1500 + [3], {}, "text 1500: 3 is not a string"),
        (["a"], {"max_tokens": 0}, "max_tokens: must be at least 1, got 0"),
        (["a"], {"max_tokens": 257}, "max_tokens: 257 is more than the 256 positions of model tiny-bert"),
        (["abc"], {"max_tokens": 2}, "max_tokens: 2 leaves no room for text 0 beside 2 special tokens"),
        (["a"], {"special_tokens": "some"}, 'special_tokens: "some" is not one of'),
        (Encoded.from_ids([[1], [1] * 300]), {}, "text 1: 300 tokens, but the limit is 256"),
    ],
)
def test_texts_that_cannot_be_used(texts: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        encode(tiny_model("bert"), texts, **options)
    assert "\n" not in str(error.value)


def test_empty_ids_and_no_tokenizer() -> None:
    with pytest.raises(InputError, match="text 1: no tokens"):
        Encoded.from_ids([[1], []])
    with pytest.raises(InputError, match="has no tokenizer; give token ids"):
        encode(from_model(build("llama"), None), ["a"])


def test_a_tokenizer_without_padding_gets_one() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    assert from_model(build("llama"), tokenizer).tokenizer.pad_token == "<eos>"
    assert padding_id(tiny_model("llama")) == PAD
    model = from_model(build("llama", pad_token_id=None), None)
    assert padding_id(model) == 0


# --- batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 16, 300, 10**6])
def test_batches_hold_every_row_once_within_the_budget(budget: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 57)
    groups = batches(lengths, budget)
    assert sorted(np.concatenate(groups).tolist()) == list(range(57))
    sizes = [len(rows) * lengths[rows].max() for rows in groups]
    assert all(size <= budget or len(rows) == 1 for size, rows in zip(sizes, groups, strict=True))
    ends = [int(lengths[rows].max()) for rows in groups]
    assert ends == sorted(ends, reverse=True)
    with pytest.raises(InputError, match="batch_tokens: must be at least 1, got 0"):
        batches(lengths, 0)


@pytest.mark.parametrize("count", [100, 400, 3000])
@pytest.mark.parametrize("budget", [2048, 8192])
def test_buckets_save_padding(count: int, budget: int) -> None:
    lengths = np.clip(np.random.default_rng(1).lognormal(3.4, 0.8, count), 4, 256).astype(int)
    groups = batches(lengths, budget)
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in groups)
    in_order = sum(len(rows) * int(rows.max()) for rows in np.split(lengths, range(32, count, 32)))
    assert padded < 1.2 * lengths.sum()
    assert in_order > 2 * padded
    assert count * lengths.max() > 4 * padded
    assert len(groups) < 20 + 1.1 * padded / budget  # and the batches stay large


@pytest.mark.parametrize("side", ["left", "right"])
def test_pad(side: Any) -> None:
    encoded = Encoded(np.array([1, 2, 3, 4, 5, 6]), np.array([1, 0, 0, 1, 1, 0], bool), np.array([0, 3, 4, 6]), first=10)
    batch = pad(encoded, np.array([0, 2]), pad_id=9, side=side)
    right = side == "right"
    assert batch.ids.tolist() == [[1, 2, 3], [5, 6, 9] if right else [9, 5, 6]]
    assert batch.mask.tolist() == [[True] * 3, [True, True, False] if right else [False, True, True]]
    assert batch.special.tolist() == [[True, False, False], [True, False, False] if right else [False, True, False]]
    assert (batch.rows.tolist(), batch.numbers.tolist()) == ([0, 2], [10, 12])


# --- which tokens --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert() -> LoadedModel:
    return tiny_model("bert")


def every_token(model: LoadedModel, site: Site) -> list[np.ndarray]:
    """(T, D) of each text, one text at a time, special tokens included."""
    with capture(model, [site]) as session:
        return [session.run(torch.from_numpy(ids.astype(np.int64))[None])[site][0].numpy() for ids in encode(model, TEXTS)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("position", "skip", "pick"),
    [
        ("final", None, lambda x: x[-1]),  # the closing special token
        ("final", False, lambda x: x[-1]),
        ("final", True, lambda x: x[-2]),
        (0, None, lambda x: x[0]),
        (0, True, lambda x: x[1]),
        (-2, False, lambda x: x[-2]),
        (-1, True, lambda x: x[-2]),
        ("mean", None, lambda x: x[1:-1].mean(0)),
        ("mean", True, lambda x: x[1:-1].mean(0)),
        ("mean", False, lambda x: x.mean(0)),
    ],
)
def test_position_and_special_tokens(bert: LoadedModel, side: Any, position: Any, skip: bool | None, pick: Any) -> None:
    site = Site("resid", 2)
    result = activations(bert, TEXTS, [site], position=position, skip_special=skip, padding_side=side, batch_tokens=30)
    for row, tokens in enumerate(every_token(bert, site)):
        assert np.abs(result[row, 0] - pick(tokens)).max() <= 1e-5


@pytest.mark.parametrize(("skip", "own"), [(None, True), (True, True), (False, False)])
def test_every_token(bert: LoadedModel, skip: bool | None, own: bool) -> None:
    site = Site("mlp_act", 1)
    total = moments(bert, TEXTS, [site], np.zeros(4, int), position="all", skip_special=skip).total()
    rows = np.concatenate([x[1:-1] if own else x for x in every_token(bert, site)])
    assert total.n[0] == len(rows)
    assert np.abs(total.mean[0, 0] - rows.mean(0)).max() <= 1e-5


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (3, "position 3: text 1 has only 3 tokens"),
        (-4, "position -4: text 1 has only 3 tokens"),
        ("last", "position: 'last' is not"),
        (True, "position: True is not"),
        (1.0, "position: 1.0 is not"),
        ("all", "has no single vector per text; use moments"),
    ],
)
def test_positions_that_are_not_there(bert: LoadedModel, position: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        activations(bert, TEXTS, [Site("resid", 0)], position=position)
