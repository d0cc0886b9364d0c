"""What a model is given for a text, and what of it is the text."""

from __future__ import annotations

import numpy as np

import moescope
from moescope.capture import activations, encode
from moescope.intervene.running_text import plain_windows
from moescope.intervene.text_loss import encode_texts
from moescope.models import LoadedModel
from moescope.tasks import Prompt
from moescope.tasks.passages import Passage
from moescope.types import Site
from tests.architectures import BOS, tiny_model
from tests.chat import chat_model, closing_model

PROMPTS = [Prompt("a", "one two", "x"), Prompt("b", "three", "y")]


def traced(model: LoadedModel, prompts: list[Prompt]) -> list[int]:
    """Every token that was fed."""
    found = moescope.trace(model, prompts, moescope.TraceSettings(new_tokens=3))
    assert found.tokens is not None
    return [int(token) for token in found.tokens]


def test_an_opening_in_the_text_is_not_put_again() -> None:
    model = tiny_model("olmoe", head=True)
    written = [Prompt(p.id, "<bos>" + p.text, p.category) for p in PROMPTS]
    assert traced(model, written) == traced(model, PROMPTS)


def test_what_follows_a_text_follows_its_own_last_token() -> None:
    assert traced(closing_model("olmoe"), PROMPTS) == traced(tiny_model("olmoe", head=True), PROMPTS)


def test_a_mean_over_a_chat_is_over_its_text() -> None:
    model, embed = chat_model().read_as(), [Site("embed", 0)]
    mean, bare = (activations(m, ["one two"], embed, position="mean") for m in (model, model.read_as(chat=False)))
    assert np.allclose(mean, bare, atol=1e-6)


def test_running_text_is_no_chat() -> None:
    passages = [Passage(f"a passage of some length {i}", "ab"[i % 2], str(i)) for i in range(8)]
    for model in (chat_model().read_as(), tiny_model("llama")):
        encoded, used = encode_texts(model, passages, tokens=64, length=32)
        bare = encode(tiny_model("llama"), [p.text for p in used])
        assert [ids.tolist() for ids in encoded] == [ids.tolist() for ids in bare]


def test_a_window_begins_as_a_text_does() -> None:
    assert {
        int(window[0]) for window in plain_windows(tiny_model("llama"), ["some plain text " * 20], tokens=128, length=32)
    } == {BOS}
