"""What an intervention is judged by on a task's texts: a probe downstream, and the model's own answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from moescope.capture.encode import Encoded
from moescope.errors import InputError
from moescope.intervene.replicas import Reading, Readout
from moescope.models.reading import answer_of, prompt_of
from moescope.types import Task

if TYPE_CHECKING:
    from moescope.models import LoadedModel


@dataclass(frozen=True)
class Probe:
    """A linear classifier of vectors."""

    weight: np.ndarray
    """float64 (C, D)"""
    bias: np.ndarray
    """float64 (C,)"""

    @classmethod
    def fit(cls, x: np.ndarray, labels: np.ndarray, *, strength: float = 0.1) -> Probe:
        """Logistic regression on standardised vectors x (N, D), classes 0..C-1; ``strength`` is scikit-learn's C."""
        x = np.asarray(x, dtype=np.float64)
        mean, scale = x.mean(0), x.std(0) + 1e-8
        fitted = LogisticRegression(C=strength, max_iter=1000).fit((x - mean) / scale, labels)
        weight, bias = fitted.coef_, fitted.intercept_
        if len(weight) == 1:  # two classes: the score of class 0 is the zero of the other
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        weight = weight / scale
        return cls(weight, bias - weight @ mean)

    def scores(self, x: Tensor) -> Tensor:
        """float32 (..., C): of vectors x (..., D), what the class probabilities are the softmax of."""
        weight = torch.as_tensor(self.weight, dtype=torch.float32, device=x.device)
        bias = torch.as_tensor(self.bias, dtype=torch.float32, device=x.device)
        return x.float() @ weight.T + bias

    def predict(self, x: Tensor) -> Tensor:
        """int64 (...): the class of vectors x (..., D)."""
        return self.scores(x).argmax(-1)


def task_readout(probe: Probe, labels: np.ndarray, answers: Sequence[int]) -> Readout:
    """Scores (E, R) of each text: probe_accuracy and, with ``answers`` (first token id per class), the model's own
    answer.
    """
    truth = torch.from_numpy(np.asarray(labels, dtype=np.int64))

    def read(reading: Reading) -> dict[str, Tensor]:
        true = truth[reading.examples].to(reading.hidden.device)[:, None]  # (E, 1)
        scores = {"probe_accuracy": (probe.predict(reading.hidden) == true).float()}
        if answers and reading.logits is not None:
            words = reading.logits[..., list(answers)].float()  # (E, R, C)
            scores["answer_logodds"] = true_odds(words, true)
            scores["answer_accuracy"] = (words.argmax(-1) == true).float()
        return scores

    return read


def true_odds(scores: Tensor, true: Tensor) -> Tensor:
    """log p(true) - log sum of p(others) (E, R), nats, of scores (E, R, C) and classes ``true`` (E, 1): what a softmax over
    more than these classes would divide by cancels.
    """
    own = torch.nn.functional.one_hot(true, scores.shape[-1]).bool()  # (E, 1, C)
    others = scores.masked_fill(own, -torch.inf).logsumexp(-1)
    return scores.masked_fill(~own, 0).sum(-1) - others


def answers_of(model: LoadedModel, task: Task, encoded: Encoded) -> tuple[int, ...]:
    """:func:`answer_tokens` where the model can give an answer: it is causal, has its head, and the text comes last.

    Empty for a tokenizer that closes a text with a special token: what follows that is not an answer.
    """
    closed = not model.reading.chat and any(encoded.special_of(i)[-1] for i in range(len(encoded)))
    if model.is_encoder or not model.has_head or closed:
        return ()
    return answer_tokens(model, task)


def answer_tokens(model: LoadedModel, task: Task) -> tuple[int, ...]:
    """The token id by which the model would begin the answer of each class: the first token of the answer word.

    It is the first token that ``text + answer`` has beyond ``text``, so that a leading space counts as the tokenizer
    counts it. A longer answer is judged by its first token alone. Empty where the task has no answers.

    Raises:
        InputError: two classes' answers begin with the same token, or one has no token.
    """
    if not task.answers:
        return ()
    if len(task.answers) != len(task.classes):
        raise InputError(f"task {task.name}: {len(task.answers)} answers for {len(task.classes)} classes; give one per class")
    asked, tokenizer = task.examples[0].text, model.tokenizer
    text = prompt_of(tokenizer, asked, model.reading)
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    first: dict[int, str] = {}
    for said in task.answers:
        answer = answer_of(tokenizer, asked, said, model.reading)
        joined = tokenizer(text + answer, add_special_tokens=False)["input_ids"]
        # where the answer's start merges into the text's last token, the answer stands alone
        own = joined[len(before) :] if joined[: len(before)] == before else []
        own = own or tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not own:
            raise InputError(f"task {task.name}: answer {answer!r} has no tokens in {model.name}; use another word")
        if own[0] in first:
            raise InputError(
                f"task {task.name}: answers {first[own[0]]!r} and {answer!r} share their first token in {model.name}: "
                "use words that differ in their first token"
            )
        first[own[0]] = answer
    return tuple(first)
