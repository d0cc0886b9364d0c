"""A text continued one forward pass at a time, and what fired in each: experts, circuit neurons, and the task it looks like."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from moescope.capture.encode import encode, model_limit
from moescope.models.experts import Dispatch, recording
from moescope.models.past import past_argument, past_of
from moescope.runtime.route.router import Named
from moescope.runtime.route.watch import Watch, watching
from moescope.server.circuits import CircuitReader
from moescope.server.edits import Edits
from moescope.server.limits import Refused
from moescope.server.served import Served

SHOWN = 128
"""tokens of a prompt, its last, whose readings are sent"""
CHUNK = 256
"""tokens of a prompt that are read in one pass"""
LIKELY = 5
"""likeliest tokens that stand beside the one chosen"""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy."""

    new_tokens: int
    temperature: float = 0.0
    seed: int = 0


class Writer:
    """Continues one text. Between two :meth:`step` the model may do other work, other writers' among it.

    A token's readings are of the pass in which the model reads that token, so a token is shown when it has been read, not when
    it has been chosen, and its routing is its own and not its predecessor's.

    Raises:
        Refused: the text is empty, or does not fit into the model's positions together with what is to be written.
    """

    def __init__(
        self,
        served: Served,
        prompt: str,
        sampling: Sampling,
        edits: Edits | None = None,
        *,
        chat: bool | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self._served, self._sampling, self._edits = served, sampling, edits or Edits()
        model = served.model
        limit = model_limit(model)
        encoded = encode(model, [prompt], chat=chat)
        if limit is not None and len(encoded.ids) + sampling.new_tokens > limit:
            most = f"the prompt and {sampling.new_tokens} new tokens do not fit into the model's {limit} positions"
            raise Refused(f"prompt: {most}; shorten it or ask for fewer", 413)
        self._feed = [int(i) for i in encoded.ids]
        # a recurrent state goes on by one token at a time, so such a model reads its prompt at once
        self._chunk = len(self._feed) if getattr(model.module, "_is_stateful", False) else chunk
        if self._edits and self._chunk > CHUNK:
            most = f"{len(self._feed)} tokens, which this model reads at once, but with edits the limit is {CHUNK}"
            raise Refused(f"prompt: {most}; shorten it", 413)
        self._shown: list[dict[str, Any]] = []  # what has been read of a prompt that has not been read whole
        self._read = 0
        self._prompted = False
        self._readable = Readable(model.tokenizer)
        self._past: Any = None
        self._watch: Watch | None = None
        self._circuits = CircuitReader(model, served.circuits)
        self._moe = bool(served.experts)
        self._draw = torch.Generator().manual_seed(sampling.seed)
        ends = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
        self._ends = frozenset([ends] if isinstance(ends, int) else ends or ())
        self._extra: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in inspect.signature(model.module.forward).parameters:
            self._extra["logits_to_keep"] = 1  # of a prompt only the last token's are needed
        self._odds: dict[str, Any] = {}  # of the token chosen last
        self.written = 0
        self.over: Literal["length", "end"] | None = None
        """why there is nothing more to write"""

    @property
    def long(self) -> bool:
        """Whether the next step is to make room for others within it; not where edits reach into the model, which those would
        meet.
        """
        return len(self._feed) > CHUNK and not self._edits

    @torch.no_grad()
    def step(self) -> dict[str, Any] | None:
        """Run the model on the prompt, or on the token chosen last, and choose the next.

        Returns:
            None where a part of a long prompt was read, and the next is to follow. ``tokens``, the tokens read (of a prompt the
            last 128), each with ``id``, ``text`` (:class:`Readable`) and, where there are such, ``experts``, ``circuits`` and,
            where it was written, ``p``, the probability that the model gave it, and ``likely``, the likeliest and theirs;
            ``read``, how many have been read so far; ``task``, what they look like.
        """
        model = self._served.model
        read, rest = self._feed[: self._chunk], self._feed[self._chunk :]
        ids = torch.tensor([read], device=model.device)
        with ExitStack() as stack:
            stack.enter_context(self._edits.applied(model))  # first, so that what reads the model reads what they made of it
            recorder = stack.enter_context(recording(model)) if self._moe else None
            stack.enter_context(self._circuits.attached())
            if self._served.router is not None:
                router = self._served.router.router
                self._watch = stack.enter_context(watching(router, model, resume=self._watch))
            out = model.module(input_ids=ids, **past_argument(model.module, self._past), **self._extra)
        self._past = past_of(out)
        odds, self._odds = self._odds, {}
        self._read += len(read)
        self._feed = rest or self._next(out.logits[0, -1])
        texts = [self._readable.add(i) for i in read[:-1]]
        texts.append(self._readable.add(read[-1], last=self.over is not None))
        tokens: list[dict[str, Any]] = [{"id": i, "text": t, **odds} for i, t in zip(read, texts, strict=True)]
        for token, experts in zip(tokens, _experts(recorder.steps[-1]) if recorder else [], strict=recorder is not None):
            token["experts"] = experts
        for trace in self._served.circuits:
            for token, values in zip(tokens, trace.scaled(self._circuits.values(trace)), strict=True):
                token.setdefault("circuits", {})[trace.task] = values
        tokens = [*self._shown, *tokens][-SHOWN:]
        self._shown = tokens if rest else []
        if rest:
            return None
        return {"tokens": tokens, "read": self._read, "task": self._named()}

    def _next(self, logits: Tensor) -> list[int]:
        """What is to be read after the prompt, or after a token that was chosen; nothing where the text is over."""
        self.written += self._prompted
        self._prompted = True
        if self.written >= self._sampling.new_tokens:
            self.over = "length"
            return []
        chosen = self._choose(logits)
        self.over = "end" if chosen in self._ends else None
        return [chosen]

    def _choose(self, logits: Tensor) -> int:
        logits = logits.double().cpu()
        if not bool(logits.max().isfinite()):  # nor is it where one of them is not a number
            mend = "take some edits back" if self._edits else "serve it in fp32"
            raise Refused(f"the model gave logits that are not numbers in {self._served.model.dtype}; {mend}", 500)
        if self._sampling.temperature == 0:
            chosen = int(logits.argmax())
        else:
            # the largest first taken away, and in float64, so that no temperature overflows
            chances = ((logits - logits.max()) / self._sampling.temperature).softmax(-1)
            chosen = int(torch.multinomial(chances, 1, generator=self._draw))
        p = logits.softmax(-1)
        likely = p.topk(min(LIKELY, len(p)))
        texts = [str(self._served.model.tokenizer.decode([i])) for i in likely.indices.tolist()]
        pairs = zip(texts, likely.values.tolist(), strict=True)
        self._odds = {"p": round(float(p[chosen]), 4), "likely": [[text, round(chance, 4)] for text, chance in pairs]}
        return chosen

    def _named(self) -> dict[str, Any] | None:
        if self._watch is None or self._read < 2:
            return None
        named: Named = self._watch.now()[0]
        chances = [round(p, 4) for p in named.chances]
        return {"task": named.task, "nearest": named.nearest, "p": round(named.p, 4), "chances": chances}


class Readable:
    """Token ids to text, one at a time: together the texts are the whole. A character whose bytes come in several tokens is
    with the last of them; a special token stands as it is written.
    """

    _LONGEST = 8  # tokens without a whole character: it is not going to become one

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._before: list[int] = []  # the tokens of the last text: some tokenizers drop the space that begins a text
        self._held: list[int] = []

    def add(self, token: int, *, last: bool = False) -> str:
        if token in self._special:
            self._before, self._held = [token], []
            return str(self._tokenizer.convert_ids_to_tokens(token))
        self._held.append(token)
        whole = self._decode(self._before + self._held)
        if whole.endswith("\ufffd") and not last and len(self._held) < self._LONGEST:
            return ""
        new = whole[len(self._decode(self._before)) :]
        self._before, self._held = self._held, []
        return new

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _experts(step: Sequence[Dispatch]) -> list[dict[str, Any]]:
    """Of each token, for each layer, the experts chosen and their weights, the heaviest first."""
    layers = [_heaviest_first(dispatch) for dispatch in step]
    return [
        {"ids": [[e for e, _ in pairs] for pairs in token], "weights": [[w for _, w in pairs] for pairs in token]}
        for token in zip(*layers, strict=True)
    ]


def _heaviest_first(dispatch: Dispatch) -> list[list[tuple[int, float]]]:
    """(expert, weight) of each token, without slots that hold none."""
    assert dispatch.weights is not None
    none = 255 if dispatch.ids.dtype == torch.uint8 else -1
    order = dispatch.weights.float().argsort(dim=1, descending=True, stable=True)
    ids = dispatch.ids.to(torch.int64).gather(1, order).tolist()
    weights = dispatch.weights.float().gather(1, order).tolist()
    rows = zip(ids, weights, strict=True)
    return [[(e, round(w, 4)) for e, w in zip(*row, strict=True) if e != none] for row in rows]
