"""What stands around a text: special tokens once, a decoder's end its own, an instruct model's chat template."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

import moescope
from moescope.capture import ActivationStore, activations, encode
from moescope.capture.windows import opening, text_ids, windows
from moescope.errors import InputError
from moescope.models import LoadedModel, load
from moescope.runtime.exit.store import load_exit
from moescope.server import gather
from moescope.studies.circuits.causal_targets import answer_tokens, answers_of
from moescope.studies.steer.study import continuation
from moescope.tasks import Prompt, load_task
from moescope.types import Example, Site, Task
from tests.architectures import BOS, EOS, tiny_model
from tests.chat import HEAD, TAIL, chat_model, closing_model

LAST = Site("resid", 3)
DIALOGUE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def shown(model: LoadedModel, text: str, **options: Any) -> tuple[str, str]:
    """What the model is given, and what of it counts as the text."""
    encoded = encode(model, [text], **options)
    return model.tokenizer.decode(encoded[0]), model.tokenizer.decode(encoded[0][~encoded.special_of(0)])


@pytest.mark.parametrize("written", ["<bos>hello", "<bos><bos>hello"])
def test_an_opening_that_is_written_already_is_put_once(written: str) -> None:
    model = tiny_model("llama")
    assert shown(model, written) == ("<bos>hello", "hello")
    assert np.array_equal(activations(model, [written], [LAST]), activations(model, ["hello"], [LAST]))
    assert model.reading.record(model.tokenizer)["texts_with_opening"] == 1
    assert model.reading.notes(model.tokenizer) == ["Texts that begin with a written <bos>: 1; it is not put twice."]
    assert shown(model, written, special_tokens="none") == (written, written)
    assert shown(tiny_model("bert"), written + "<eos>") == ("<bos>hello<eos>", "hello")
    with pytest.raises(InputError, match="text 0: the text is empty"):
        encode(model, ["<bos>"])


def test_a_decoder_ends_with_the_text_s_own_last_token() -> None:
    model = closing_model()
    assert shown(model, "hello") == ("<bos>hello", "hello")
    assert shown(model, "hello<eos>") == ("<bos>hello<eos>", "hello<eos>")  # written in the text, so the text's own
    assert shown(model, "hello", special_tokens="all") == ("<bos>hello<eos>", "hello")
    final = activations(model, ["one", "two"], [Site("embed", 0)])
    assert not np.array_equal(final[0], final[1])
    assert np.array_equal(final, activations(tiny_model("llama", head=True), ["one", "two"], [Site("embed", 0)]))
    assert "the final token is the text's own" in model.reading.notes(model.tokenizer)[0]
    assert continuation(model, "hello", 4) == continuation(tiny_model("llama", head=True), "hello", 4)
    assert shown(tiny_model("bert"), "hello") == ("<bos>hello<eos>", "hello")


def test_a_trace_generates_after_the_text_and_not_after_its_end() -> None:
    prompts = [Prompt("a", "one two", "x"), Prompt("b", "three", "y")]
    settings = moescope.TraceSettings(new_tokens=3)
    found = moescope.trace(closing_model("olmoe"), prompts, settings)
    assert found.tokens is not None
    assert EOS not in found.tokens[~found.generated]
    plain = moescope.trace(tiny_model("olmoe", head=True), prompts, settings)
    assert np.array_equal(found.tokens, plain.tokens)
    assert found.meta["encoding"]["after_left_out"]
    kept = moescope.trace(closing_model("olmoe"), prompts, settings, run=moescope.Run(special_tokens="all"))
    assert kept.tokens is not None
    assert (kept.tokens[~kept.generated] == EOS).sum() == 2


# --- chat templates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hello there", "<bos>hello there", "a", "user", "  hello\n"])
def test_a_text_is_the_user_s_turn(text: str) -> None:
    model = chat_model().read_as()
    inner = text.removeprefix("<bos>").strip()
    assert shown(model, text) == (HEAD + inner + TAIL, inner)
    assert shown(model.read_as(chat=False), "hello") == ("<bos>hello", "hello")
    with pytest.warns(UserWarning, match="1 of 1 texts were longer"):
        assert shown(model, "0123456789", max_tokens=len(encode(model, ["0123"])[0])) == (HEAD + "6789" + TAIL, "6789")


def test_positions_of_a_chat() -> None:
    model = chat_model().read_as()
    final = activations(model, ["one", "two"], [Site("embed", 0)])
    assert np.array_equal(final[0], final[1])  # the last token before the answer
    assert not np.array_equal(*activations(model, ["one", "two"], [LAST]))
    mean = activations(model, ["one"], [Site("embed", 0)], position="mean")
    bare = activations(model.read_as(chat=False), ["one"], [Site("embed", 0)], position="mean")
    assert np.allclose(mean, bare)  # without the template's tokens


def test_a_text_in_the_template_already_is_left_as_it_is() -> None:
    model = chat_model().read_as()
    written = HEAD + "hello" + TAIL
    assert shown(model, written)[0] == written
    assert shown(model, written.removeprefix("<bos>"))[0] == written
    assert model.reading.record(model.tokenizer)["texts_with_template"] == 2
    dialogue = chat_model(template=DIALOGUE).read_as()
    assert shown(dialogue, "a user: is one who uses")[0] == "<bos>user: a user: is one who uses\nassistant:"
    assert shown(dialogue, "user: hello\nassistant:")[0] == "<bos>user: hello\nassistant:"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("hello", "does not show what the user says; use chat=False"),
        ("{{ raise_exception('no') }}", r"cannot be used \(no\); use chat=False"),
        ("{{ messages[0].content | replace('e', '') }}", "does not show"),
        (
            "{{ messages[0].content | replace('z', '') }}{{ messages[0].content | length }}",
            "text 1: .* depends on what it says",
        ),
    ],
)
def test_a_template_that_cannot_be_used(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        encode(chat_model(template=template).read_as(), ["moescope reads this", "zoo"])
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("chat: ")


def test_a_chat_needs_a_template() -> None:
    assert not tiny_model("llama").read_as().reading.chat
    assert chat_model().read_as().reading.chat
    for model in (tiny_model("llama"), chat_model(tiny_model("bert"))):  # an encoder answers nobody
        with pytest.raises(InputError, match="chat: the model's tokenizer has no chat template; use chat=False"):
            model.read_as(chat=True)
    assert not chat_model(tiny_model("bert")).read_as().reading.chat


def test_a_store_says_how_texts_were_read(tmp_path: Any) -> None:
    model = chat_model().read_as()
    ActivationStore.collect(tmp_path / "s", model, ["one"], [LAST], position="final")
    again = ActivationStore.collect(tmp_path / "s", model, ["one"], [LAST], position="final")
    assert np.allclose(again.read().values, activations(model, ["one"], [LAST])[:, 0], atol=1e-2)
    with pytest.raises(InputError, match="made with chat = True, not False"):
        ActivationStore.collect(tmp_path / "s", model.read_as(chat=False), ["one"], [LAST], position="final")


def test_answers_begin_where_the_template_lets_the_model_speak() -> None:
    task = Task("t", (Example("is it so?", 0, "a"), Example("is it?", 1, "b")), ("no", "yes"), "here", answers=(" No", " Yes"))
    model = chat_model().read_as()
    byte = [model.tokenizer.convert_tokens_to_ids(letter) for letter in "NY"]
    assert list(answer_tokens(model, task)) == byte
    assert answers_of(model, task, encode(model, [e.text for e in task.examples])) == tuple(byte)
    space = model.tokenizer(" ", add_special_tokens=False)["input_ids"][0]
    spaced = chat_model(
        template=DIALOGUE.replace("assistant:", "{% if add_generation_prompt %}assistant:{% endif %}")
    ).read_as()
    with pytest.raises(InputError, match="share their first token"):  # this template has a space before what is said
        answer_tokens(spaced, task)
    assert model.tokenizer(" No", add_special_tokens=False)["input_ids"][0] == space


# --- studies -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def instruct() -> LoadedModel:
    return chat_model(load("dense-tiny", head=True), DIALOGUE)


def test_a_study_reads_an_instruct_model_by_its_template(instruct: LoadedModel) -> None:
    task = load_task("sentiment=uci-sentiment?template=question", limit=48)
    settings = moescope.CircuitSettings(
        site="resid", k=2, ks=(2,), n_permutations=19, n_label_permutations=0, n_random=20, twin=False, ablate=None
    )
    chat = moescope.circuits(instruct, [task], settings)
    bare = moescope.circuits(instruct, [task], settings, run=moescope.Run(chat=False))
    assert chat.meta["encoding"]["template"] == "<|bos|>user: {text}\nassistant:"
    assert bare.meta["encoding"]["chat"] is False
    assert any("the user's turn of the model's chat template" in note for note in chat.meta["notes"])
    assert not any("template" in note for note in bare.meta["notes"])
    assert chat.meta["forward_tokens"]["bare"] > bare.meta["forward_tokens"]["bare"]
    cues = [r.tables["controls"].set_index("control")["accuracy"].filter(regex="^surface") for r in (chat, bare)]
    assert len(cues[0]) > 5
    assert cues[0].equals(cues[1])  # what stands in the texts themselves


@pytest.mark.parametrize(("study", "inner"), [("signatures", "signatures"), ("distill", "distill"), ("circuits", "circuits")])
@pytest.mark.parametrize("asked", [None, True])
def test_the_published_protocol_has_no_chat(
    study: str, inner: str, asked: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module(f"moescope.studies.{study}.reproduce")
    runs: list[moescope.Run] = []

    def stop(*_: Any, run: moescope.Run) -> None:
        runs.append(run)
        raise InterruptedError

    monkeypatch.setattr(module, inner, stop)
    verb = getattr(module, "reproduce_circuits" if study == "circuits" else "reproduce")
    task = Task("t", (Example("is it so?", 0, "a"), Example("is it?", 1, "b")), ("no", "yes"), "here")
    with pytest.raises(InterruptedError):
        verb(chat_model(), *([[task]] if study == "circuits" else []), run=moescope.Run(chat=asked))
    assert runs[0].chat is bool(asked)


def test_an_artifact_reads_texts_as_it_was_fitted(instruct: LoadedModel, tmp_path: Any) -> None:
    task = load_task("sentiment=uci-sentiment", limit=80)
    settings = moescope.ExitSettings(k=3, risk=0.2, delta=0.3, timed_texts=2, n_random=119)
    found = moescope.exit(instruct, [task], settings, run=moescope.Run(out=tmp_path / "e"))
    made = found.artifacts["exit/sentiment"]
    texts = [e.text for e in task.examples[:8]]
    read = load_exit(tmp_path / "e" / "exit" / "sentiment", instruct)  # a model that would read them bare
    assert read.model.reading.chat
    assert np.allclose(read.predict_proba(texts), made.predict_proba(texts))
    served = gather(instruct, exits=[tmp_path / "e"], chat=False)
    assert served.classifiers["sentiment"].exit.model.reading.chat
    assert not served.model.reading.chat


# --- running text --------------------------------------------------------------------------------------------------------


def test_every_window_begins_as_a_text_does() -> None:
    model = tiny_model("llama")
    ids = text_ids(model, ["abcdefgh", "ijklmnop", "never read"], enough=12)
    assert model.tokenizer.decode(ids) == "abcdefghijklmnop"
    cut = windows(model, ids, length=5, most=12)
    assert [model.tokenizer.decode(row) for row in cut] == ["<bos>abcd", "<bos>efgh", "<bos>ijkl"]
    assert opening(chat_model().read_as()).tolist() == [BOS]  # whatever frames a prompt
    bare = windows(model.read_as("none"), ids, length=5, most=12)
    assert [model.tokenizer.decode(row) for row in bare] == ["abcde", "fghij"]
    assert windows(model, ids[:3], length=5, most=12).shape == (0, 5)
    assert windows(model, ids, length=1, most=12).shape == (0, 1)


def test_conversion_judges_behind_the_opening() -> None:
    from moescope.intervene.held_out import read_windows
    from moescope.studies.convert.settings import ConvertSettings

    model = load("dense-tiny", head=True)
    settings = ConvertSettings(window=32, calibration_tokens=2048, heldout_tokens=256)
    for part in read_windows(model, None, None, settings, 256):
        assert torch.equal(part.ids[:, 0], torch.full((len(part),), model.tokenizer.bos_token_id))
        assert not (part.ids[:, 1:] == model.tokenizer.bos_token_id).any()
