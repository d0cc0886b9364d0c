"""How a text becomes the tokens that a model is given: special tokens, and the chat template of an instruct model.

A decoder's text begins with what its tokenizer puts before it (``<bos>``), once, and ends with its own last token: an
end-of-text token that the tokenizer would append is left out, since it is the same after every text and nothing follows it.
With a chat template the text is the user's turn, and the last token is the last of the generation prompt, behind which the
model begins its answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from moescope.errors import InputError
from moescope.models.vision.reader import ImageReader

SpecialTokens = Literal["default", "all", "none"]
"""``"default"``: what the tokenizer puts before a text, and for an encoder what it puts after it too. ``"all"``: both, for
decoders too. ``"none"``: neither."""
Tokens = tuple[np.ndarray, np.ndarray]
"""int32 (T,) ids and bool (T,): not of the text itself, but added by the tokenizer or the template"""

_PROBE = "moescope reads this"


@dataclass(frozen=True)
class Reading:
    """How texts are read; :meth:`moescope.models.LoadedModel.read_as` sets it."""

    special_tokens: SpecialTokens = "default"
    chat: bool = False
    """a text is the user's turn of the tokenizer's chat template"""
    met: dict[str, set[int]] = field(default_factory=dict, compare=False, repr=False)
    """hashes of the texts that were ``framed`` by the template, ``templated`` or with an ``opened`` beginning already, or whose
    end was left ``open``"""

    def record(self, tokenizer: Any) -> dict[str, Any]:
        """What was done, for a result's meta."""
        if isinstance(tokenizer, ImageReader):
            processor = type(tokenizer.processor).__name__
            return {"images": processor, "places": tokenizer.places, "before_patches": tokenizer.before}
        facts: dict[str, Any] = {"special_tokens": self.special_tokens, "chat": "framed" in self.met}
        if tokenizer is None:
            return facts
        before, after = (tokenizer.convert_ids_to_tokens(part.tolist()) for part in added(tokenizer))
        facts |= {
            "before": before if self.special_tokens != "none" else [],
            "after": after,
            "after_left_out": "open" in self.met,
        }
        if facts["chat"]:
            frame = Frame.of(tokenizer)
            facts["template"] = f"{frame.head}{{text}}{frame.tail}"
            facts["template_sha256"] = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
        names = {"opened": "texts_with_opening", "templated": "texts_with_template"}
        return facts | {name: len(self.met[key]) for key, name in names.items() if key in self.met}

    def notes(self, tokenizer: Any) -> list[str]:
        """What a reader must know of how the texts were read; nothing where it goes without saying."""
        count = {key: len(texts) for key, texts in self.met.items()}
        said = []
        if "framed" in count:
            said.append(
                "Each text is the user's turn of the model's chat template: its final token is the last before the "
                "answer (--no-chat reads the bare texts)."
            )
        if "templated" in count:
            said.append(f"Texts that hold the chat template's own marks: {count['templated']}; they are read as they stand.")
        if "opened" in count:
            said.append(f"Texts that begin with a written {_words(tokenizer, 0)}: {count['opened']}; it is not put twice.")
        if "open" in count:
            said.append(
                f"The tokenizer ends a text with {_words(tokenizer, 1)}; it is left out, so that the final token is the text's "
                "own (--special-tokens all keeps it)."
            )
        return said

    def meet(self, what: str, text: str) -> None:
        """Put on record that ``text`` was so."""
        self.met.setdefault(what, set()).add(hash(text))


def reading_of(
    tokenizer: Any, special_tokens: SpecialTokens = "default", chat: bool | None = None, *, encoder: bool = False
) -> Reading:
    """The reading that is asked for; ``chat=None``: by the chat template where the tokenizer has one.

    Raises:
        InputError: no such mode, or no chat template that can be used.
    """
    if special_tokens not in ("default", "all", "none"):
        raise InputError(f'"{special_tokens}" is not one of "default", "all", "none"', "special_tokens")
    has = bool(getattr(tokenizer, "chat_template", None)) and not encoder
    whole = bool(getattr(tokenizer, "is_fast", False))
    if chat and not (has and whole):
        lacks = "does not say which tokens are the text's" if has else "has no chat template"
        raise InputError(f"the model's tokenizer {lacks}; use chat=False", "chat")
    return Reading(special_tokens, has and whole if chat is None else chat)


@dataclass(frozen=True)
class Frame:
    """What a chat template puts around a text that is the user's turn, with the beginning of the answer."""

    head: str
    tail: str
    tokens: tuple[str, ...]
    """special tokens that show that a text is in the template already"""
    turn: tuple[str, ...]
    """how the user's turn begins, with and without what begins every text"""

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        """Raises InputError where the template leaves the text out."""
        head, found, tail = rendered(tokenizer, _PROBE).partition(_PROBE)
        if not found:
            raise InputError("the model's chat template does not show what the user says; use chat=False", "chat")
        inner = head.removeprefix(tokenizer.bos_token or "")
        tokens = (token for token in tokenizer.all_special_tokens if token in inner and token != tokenizer.eos_token)
        turns = {part.strip().splitlines()[-1] for part in (head, inner) if part.strip()}
        return cls(head, tail, tuple(tokens), tuple(turn for turn in turns if not turn.isalnum()))

    def holds(self, text: str) -> bool:
        """Whether ``text`` is in the template already."""
        return text.lstrip().startswith(self.turn) or any(token in text for token in self.tokens)


def rendered(tokenizer: Any, text: str, answer: str | None = None) -> str:
    """``text`` as the user's turn and the beginning of the answer, or with the whole of it.

    Raises:
        InputError: the template cannot be used.
    """
    turns = [{"role": "user", "content": text}]
    turns += [] if answer is None else [{"role": "assistant", "content": answer}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None))
    except Exception as error:  # a template is a program: what it throws has no one base
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the model's chat template cannot be used ({reason}); use chat=False", "chat") from error


def prompt_of(tokenizer: Any, text: str, reading: Reading) -> str:
    """The text that is tokenized for ``text``."""
    framed = reading.chat and not Frame.of(tokenizer).holds(text)
    return rendered(tokenizer, text) if framed else text


def answer_of(tokenizer: Any, text: str, answer: str, reading: Reading) -> str:
    """``answer`` as the model would write it behind :func:`prompt_of`: in a chat as the template sets it, without the space
    that parts it from running text."""
    if not reading.chat:
        return answer
    prompt, whole = prompt_of(tokenizer, text, reading), rendered(tokenizer, text, answer.strip())
    written = whole.removeprefix(prompt)
    return written if written != whole and written.strip().startswith(answer.strip()) else answer.strip()


def added(tokenizer: Any) -> Tokens:
    """int32 ids that the tokenizer puts before and after a text."""
    ids, mask = next(_plain(tokenizer, ["a"], add=True))
    if mask.all():
        return ids[:0], ids[:0]
    return ids[: _run(mask)], ids[len(ids) - _run(mask[::-1]) :]


def tokenized(tokenizer: Any, texts: Sequence[str], reading: Reading, *, encoder: bool, first_row: int = 0) -> list[Tokens]:
    """Ids of each text and which of them are not its own; where there is nothing else, the text is empty.

    Raises:
        InputError: the chat template cannot be used, or changes the text (the row is named).
    """
    frame = Frame.of(tokenizer) if reading.chat else None
    alone = [row for row, text in enumerate(texts) if frame is None or frame.holds(text)]
    plain = _plain(tokenizer, [texts[row] for row in alone], add=reading.special_tokens != "none")
    closed = encoder or reading.special_tokens == "all"
    found = {row: _once(tokens, texts[row], reading, closed) for row, tokens in zip(alone, plain, strict=True)}
    if frame is not None:
        for row in alone:
            reading.meet("templated", texts[row])
        rest = [row for row in range(len(texts)) if row not in found]
        framed = _framed(tokenizer, [texts[row] for row in rest], frame, reading, rest, first_row)
        found |= zip(rest, framed, strict=True)
    return [found[row] for row in range(len(texts))]


def _plain(tokenizer: Any, texts: Sequence[str], *, add: bool) -> Iterator[Tokens]:
    if not texts:
        return
    output = tokenizer(
        list(texts),
        add_special_tokens=add,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    for ids, mask in zip(output["input_ids"], output["special_tokens_mask"], strict=True):
        yield np.asarray(ids, np.int32), np.asarray(mask, bool)


def _run(mask: np.ndarray) -> int:
    """How many True it begins with."""
    return int(np.argmin(mask)) if not mask.all() else len(mask)


def _once(tokens: Tokens, text: str, reading: Reading, closed: bool) -> Tokens:
    """The tokens with an opening that stands in the text already put once, and closed only where that is wanted."""
    ids, mask = tokens
    if mask.all():
        return tokens
    before, after = _run(mask), _run(mask[::-1])
    while before and not mask[before : 2 * before].any() and np.array_equal(ids[before : 2 * before], ids[:before]):
        reading.meet("opened", text)
        ids, mask = np.delete(ids, np.s_[before : 2 * before]), np.delete(mask, np.s_[before : 2 * before])
    if after and not closed:
        reading.meet("open", text)
        return ids[: len(ids) - after], mask[: len(mask) - after]
    end = len(ids) - after
    while after and end - after > before and np.array_equal(ids[end - after : end], ids[end:]):
        ids, mask = np.delete(ids, np.s_[end - after : end]), np.delete(mask, np.s_[end - after : end])
        end -= after
    return ids, mask


def _framed(
    tokenizer: Any, texts: Sequence[str], frame: Frame, reading: Reading, rows: Sequence[int], first_row: int
) -> Iterator[Tokens]:
    """Texts in the template, which brings its own special tokens."""
    if not texts:
        return
    bos = tokenizer.bos_token
    whole = []
    for row, text in zip(rows, texts, strict=True):
        reading.meet("framed", text)
        inner = text
        while bos and inner.startswith(bos):
            reading.meet("opened", text)
            inner = inner.removeprefix(bos)
        whole.append(rendered(tokenizer, inner))
        if not (whole[-1].startswith(frame.head) and whole[-1].endswith(frame.tail)):
            raise InputError(
                f"text {first_row + row}: the model's chat template depends on what it says; use chat=False", "chat"
            )
    output = tokenizer(
        whole, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, return_token_type_ids=False,
        verbose=False,
    )  # fmt: skip
    for text, ids, spans in zip(whole, output["input_ids"], output["offset_mapping"], strict=True):
        start, stop = np.asarray(spans, np.int64).reshape(-1, 2).T
        own = np.flatnonzero((start < len(text) - len(frame.tail)) & (stop > len(frame.head)))
        mask = np.ones(len(ids), bool)
        if len(own):  # one piece: some tokenizers give white space no width
            mask[own[0] : own[-1] + 1] = False
        yield np.asarray(ids, np.int32), mask


def _words(tokenizer: Any, side: int) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(added(tokenizer)[side].tolist()))
