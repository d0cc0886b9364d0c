"""A model answers questions by itself, greedily; what it wrote is kept once and read again by every later run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from moescope.capture.activations import batches_for
from moescope.capture.encode import Batch, Encoded, encode, model_limit
from moescope.capture.spread import Progress, read_batches
from moescope.errors import InputError, Note
from moescope.files.cache import cache
from moescope.files.checkpoint import check_arrays, load_arrays, save_arrays
from moescope.models.inputs import padding_id
from moescope.models.writing import can_generate, end_tokens
from moescope.tasks.answered import CLASSES, RIGHT, WRONG, Answer, Answered
from moescope.tasks.build import task_sha256
from moescope.tasks.questions import Questions

if TYPE_CHECKING:
    from moescope.models import LoadedModel

_FORMAT = "moescope-answers-1"


@dataclass(frozen=True)
class Written:
    """What a model wrote behind N questions, packed: tokens up to the one that ended each answer, that one included.

    ``ids`` int32, ``log_probability`` and ``entropy`` (of the choice of each token, in nats) float32, all (total tokens,);
    ``counts`` int64 (N,).
    """

    ids: np.ndarray
    log_probability: np.ndarray
    entropy: np.ndarray
    counts: np.ndarray

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, log-probabilities and entropies of one answer."""
        end = int(self.counts[: row + 1].sum())
        part = slice(end - int(self.counts[row]), end)
        return self.ids[part], self.log_probability[part], self.entropy[part]


def answered(
    model: LoadedModel,
    questions: Questions,
    *,
    is_right: Callable[[str, str], bool] | None = None,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Answered:
    """Let ``model`` answer, and label each question by whether its answer is right.

    Decoding is greedy. What the model wrote is kept under moescope's cache, by the model's fingerprint, the questions' tokens
    and what decides an answer's end, and is read from there by later runs; where the file is damaged a note says that it was
    written anew.

    Args:
        is_right: takes a rendered question and the answer; None: the task's own check.
        batch_tokens: questions x (longest question + new tokens) of a batch.
        max_tokens: of a question, of which the last are kept.

    Raises:
        InputError: the model has no head, no room for a question and its answer, or answers all or none rightly.
    """
    if not isinstance(questions, Questions):
        raise InputError(f"{type(questions).__name__} is no task of questions; load one with kind=answers", "questions")
    if model.tokenizer is None or model.is_encoder or not can_generate(model):
        raise InputError(f"{model.name} writes no answers: a causal language model with its head and tokenizer does", "model")
    texts = list(dict.fromkeys(e.text for e in questions.examples))
    limit = model_limit(model)
    if limit is not None:
        if limit <= questions.new_tokens:
            raise InputError(
                f"task {questions.name!r}: {questions.new_tokens} new tokens leave no room for a question in the {limit} "
                f"positions of {model.name}; give a smaller new_tokens="
            )
        room = limit - questions.new_tokens
        max_tokens = room if max_tokens is None else min(max_tokens, room)
    encoded = encode(model, texts, max_tokens=max_tokens)
    written = _kept(model, encoded, questions, batch_tokens, progress)
    label = is_right or questions.is_right
    found: dict[str, tuple[Answer, int, np.ndarray]] = {}
    for row, text in enumerate(texts):
        answer, ids = _answer(model, questions, text, *written[row])
        found[text] = (answer, RIGHT if label(text, answer.text) else WRONG, ids)
    return _task(questions, encoded, found, model.name)


def _task(questions: Questions, encoded: Encoded, found: dict[str, tuple[Answer, int, np.ndarray]], model: str) -> Answered:
    number = {text: row for row, text in enumerate(found)}
    examples, answer_of, ids_of, special_of, slot_of = [], {}, {}, {}, {}
    for example in questions.examples:
        answer, right, ids = found[example.text]
        row, slot = number[example.text], questions.slot_of[example.text]
        read, special = encoded[row], encoded.special_of(row)
        text = example.text
        if questions.at == "answer":
            text, slot = f"{example.text} {answer.text}".rstrip(), f"{slot}\n{answer.text}".rstrip()
            read, special = np.concatenate([read, ids]), np.concatenate([special, np.zeros(len(ids), bool)])
        examples.append(replace(example, text=text, label=right))
        answer_of[text], ids_of[text], special_of[text], slot_of[text] = answer, read, special, slot
    rights = sum(e.label == RIGHT for e in examples)
    if rights in (0, len(examples)):
        many, other = ("none", "easier") if rights == 0 else ("all", "harder")
        raise InputError(
            f"task {questions.name!r}: {model} answers {many} of {len(examples)} questions rightly, so there is nothing to "
            f"tell apart; give {other} questions, another template= or new_tokens=, or another model"
        )
    return Answered(
        questions.name, tuple(examples), CLASSES, questions.source, questions.licence, (), task_sha256(examples),
        template=questions.template, slot_of=slot_of, at=questions.at, answer_of=answer_of, ids_of=ids_of,
        special_of=special_of,
    )  # fmt: skip


def read_tokens(task: Answered) -> Encoded:
    """The tokens at which an answered task is read, as the model read and wrote them."""
    rows = [task.ids_of[e.text] for e in task.examples]
    special = [task.special_of[e.text] for e in task.examples]
    return replace(Encoded.from_ids(rows), special=np.concatenate(special))


def _answer(
    model: LoadedModel, questions: Questions, text: str, ids: np.ndarray, log_probability: np.ndarray, entropy: np.ndarray
) -> tuple[Answer, np.ndarray]:
    """The answer, and its own tokens: without the one that ended it, unless a part of the answer stands in that."""
    own = len(ids)
    ended = int(ids[-1]) in _ends(model) or (questions.until == "line" and _line_is_over(model, ids))
    if ended and (int(ids[-1]) in _ends(model) or not _decode(model, ids[-1:]).partition("\n")[0].strip()):
        own -= 1
    said = _decode(model, ids[:own]).lstrip()
    said = said.partition("\n")[0] if questions.until == "line" else said
    return (
        Answer(
            text,
            said.strip(),
            own,
            float(log_probability.mean()),
            float(log_probability.min()),
            float(log_probability.sum()),
            float(entropy.mean()),
            questions.difficulty_of.get(text, ""),
        ),
        ids[:own],
    )


def _decode(model: LoadedModel, ids: Sequence[int] | np.ndarray) -> str:
    return str(model.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _line_is_over(model: LoadedModel, ids: Sequence[int] | np.ndarray) -> bool:
    """Whether a line end follows something: a model may begin with empty lines."""
    return "\n" in _decode(model, ids).lstrip()


def _ends(model: LoadedModel) -> frozenset[int]:
    ends = end_tokens(model)
    return frozenset([ends] if isinstance(ends, int) else ends or ())


# Kept once


def _kept(model: LoadedModel, encoded: Encoded, questions: Questions, batch_tokens: int, progress: Progress | None) -> Written:
    identity = {
        "model": model.fingerprint,
        "computed": [str(model.dtype), model.device.type],
        "questions": encoded.sha256,
        "new_tokens": questions.new_tokens,
        "until": questions.until,
    }
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    path = cache() / "answers" / f"{name}.safetensors"
    if path.is_file():
        try:
            return _loaded(path, identity, len(encoded))
        except InputError:
            warnings.warn(
                f"{questions.name}: the answers that were kept are damaged; they are written anew", Note, stacklevel=3
            )
            with contextlib.suppress(OSError):
                path.unlink()
    made = _written(model, encoded, questions, batch_tokens, progress)
    arrays = {"ids": made.ids, "log_probability": made.log_probability, "entropy": made.entropy, "counts": made.counts}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        save_arrays(path, arrays, {"format": _FORMAT, **identity})
    except (OSError, InputError) as error:  # no room, or no right to write there: the answers themselves are there
        warnings.warn(f"{questions.name}: the answers cannot be kept for a later run ({error})", Note, stacklevel=3)
    return made


def _loaded(path: Path, identity: dict[str, Any], n: int) -> Written:
    """Raises InputError where the file is not what :func:`_kept` wrote."""
    arrays, _ = load_arrays(path, _FORMAT, expected=identity)
    check_arrays(path, arrays, {"counts": (n,), "ids": (None,), "log_probability": (None,), "entropy": (None,)})
    total = int(arrays["counts"].sum())
    check_arrays(path, arrays, dict.fromkeys(("ids", "log_probability", "entropy"), (total,)))
    return Written(arrays["ids"], arrays["log_probability"], arrays["entropy"], arrays["counts"])


# Written


def _written(
    model: LoadedModel, encoded: Encoded, questions: Questions, batch_tokens: int, progress: Progress | None
) -> Written:
    read = partial(_write, new_tokens=questions.new_tokens, line=questions.until == "line")
    groups = batches_for(model, encoded.lengths + questions.new_tokens, batch_tokens, "left")
    rows: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for some, found in read_batches(model, encoded, groups, "left", read, progress=progress):
        rows.update(zip(some.tolist(), found, strict=True))
    ids, log_probability, entropy = (np.concatenate([rows[i][part] for i in range(len(encoded))]) for part in range(3))
    return Written(ids, log_probability, entropy, np.array([len(rows[i][0]) for i in range(len(encoded))], np.int64))


def _write(
    model: LoadedModel, batches: Iterable[Batch], *, new_tokens: int, line: bool
) -> Iterator[list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Of each question of a batch, padded on the left: ids, log-probabilities and entropies to the end of the answer."""
    module: Any = model.module
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, num_beams=1, use_cache=True, eos_token_id=end_tokens(model),
        pad_token_id=padding_id(model),
    )  # fmt: skip
    for batch in batches:
        odds, over = _Odds(), _Over(model, batch.ids.shape, new_tokens, line)
        with torch.no_grad():
            ids = module.generate(
                batch.ids.to(model.device),
                attention_mask=batch.mask.to(model.device, torch.long),
                generation_config=config,
                logits_processor=LogitsProcessorList([odds]),
                stopping_criteria=StoppingCriteriaList([over]),
            )
        ids = ids[:, batch.ids.shape[1] :].cpu().numpy().astype(np.int32)
        log_probability, entropy = (torch.stack(part, 1).numpy() for part in (odds.log_probability, odds.entropy))
        yield [(ids[i, :n], log_probability[i, :n], entropy[i, :n]) for i, n in enumerate(over.lengths(ids.shape[1]))]


class _Odds(LogitsProcessor):
    """Keeps the log-probability of the likeliest token, which is the one that is written, and the entropy of the choice."""

    def __init__(self) -> None:
        self.log_probability: list[torch.Tensor] = []
        self.entropy: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        log_p = scores.float().log_softmax(-1)
        self.log_probability.append(log_p.amax(-1).cpu())
        self.entropy.append(torch.special.entr(log_p.exp()).sum(-1).cpu())
        return scores


class _Over(StoppingCriteria):
    """Which answers of a batch are over, and how long they are."""

    def __init__(self, model: LoadedModel, shape: Sequence[int], new_tokens: int, line: bool) -> None:
        self._model, self._start, self._line = model, shape[1], line
        self._ends = _ends(model)
        self._lengths = np.zeros(shape[0], np.int64)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        new = input_ids[:, self._start :].cpu().numpy()
        for row in np.flatnonzero(self._lengths == 0):
            ids = new[row]
            if int(ids[-1]) in self._ends or (self._line and _line_is_over(self._model, ids)):
                self._lengths[row] = len(ids)
        return torch.as_tensor(self._lengths > 0, device=input_ids.device)

    def lengths(self, most: int) -> list[int]:
        """Tokens of each answer, the one that ended it included; ``most`` where it was cut."""
        return [int(n) or most for n in self._lengths]
