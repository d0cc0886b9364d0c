"""What an intervention is judged by: a probe downstream, the model's own answer, its loss on other text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from moescope.capture import activations
from moescope.capture.encode import Encoded, encode
from moescope.errors import InputError
from moescope.intervene.edits import Edit
from moescope.intervene.many import masked_edit
from moescope.intervene.replicas import Reading, Readout
from moescope.types import Neuron, Site, Task

if TYPE_CHECKING:
    from moescope.models import LoadedModel

LOWER_IS_HARM = ("probe_accuracy", "answer_accuracy", "answer_logodds")
HIGHER_IS_HARM = ("wikitext_loss",)


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

    def predict(self, x: Tensor) -> Tensor:
        """int64 (...): the class of vectors x (..., D)."""
        weight = torch.as_tensor(self.weight, dtype=torch.float32, device=x.device)
        bias = torch.as_tensor(self.bias, dtype=torch.float32, device=x.device)
        return (x.float() @ weight.T + bias).argmax(-1)


class NeuronSets:
    """S sets of neurons, each set to ``replacement`` of its site: (D,), per text (N, D), or per text and token (N, T,
    D).
    """

    def __init__(self, model: LoadedModel, sets: Sequence[Sequence[Neuron]], replacement: Mapping[Site, Tensor]) -> None:
        self._widths = {site: model.width(site) for site in replacement}
        self._replacement = replacement
        self._last = model.n_layers - 1
        self._indices: list[dict[Site, np.ndarray]] = []
        for neurons in sets:
            by_site: dict[Site, list[int]] = {}
            for neuron in neurons:
                by_site.setdefault(neuron.site, []).append(neuron.index)
            self._indices.append({site: np.array(index) for site, index in by_site.items()})

    def __len__(self) -> int:
        return len(self._indices)

    def start(self, number: int) -> int:
        return min((first_change(site) for site in self._indices[number]), default=self._last)

    def edits(self, numbers: np.ndarray, examples: np.ndarray) -> dict[Site, Edit]:
        masks: dict[Site, np.ndarray] = {}
        for row, number in enumerate(numbers):
            for site, index in self._indices[number].items():
                if site not in masks:
                    masks[site] = np.zeros((len(numbers), self._widths[site]), dtype=bool)
                masks[site][row, index] = True
        edits = {}
        for site, mask in masks.items():
            values = self._replacement[site]
            edits[site] = masked_edit(
                site, torch.from_numpy(mask), values if values.dim() == 1 else values[torch.from_numpy(examples)]
            )
        return edits


def first_change(site: Site) -> int:
    """The last layer whose output may be taken from a clean run when ``site`` is edited (-1: none)."""
    if site.kind == "resid":
        return site.layer  # the edit applies to that output
    return -1 if site.kind == "embed" else site.layer - 1


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
            own = torch.nn.functional.one_hot(true, len(answers)).bool()  # (E, 1, C)
            # log p(true) - log sum of p(others): the softmax over the vocabulary cancels
            others = words.masked_fill(own, -torch.inf).logsumexp(-1)
            scores["answer_logodds"] = words.masked_fill(~own, 0).sum(-1) - others
            scores["answer_accuracy"] = (words.argmax(-1) == true).float()
        return scores

    return read


def loss_readout(reading: Reading) -> dict[str, Tensor]:
    """wikitext_loss (E, R): mean negative log-likelihood of tokens 1..T-1, nats per token."""
    assert reading.logits is not None
    predicted = reading.logits[:, :, :-1].float()  # (E, R, T-1, V)
    target = reading.ids[:, None, 1:, None].expand(*predicted.shape[:3], 1)
    likelihood = predicted.gather(-1, target)[..., 0] - predicted.logsumexp(-1)
    return {"wikitext_loss": -likelihood.mean(-1)}


def answers_of(model: LoadedModel, task: Task, encoded: Encoded) -> tuple[int, ...]:
    """:func:`answer_tokens` where the model can give an answer: it is causal, has its head, and the text comes last.

    Empty for a tokenizer that closes a text with a special token: what follows that is not an answer.
    """
    if model.is_encoder or not model.has_head or any(encoded.special_of(i)[-1] for i in range(len(encoded))):
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
    text = task.examples[0].text
    tokenizer = model.tokenizer
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    first: dict[int, str] = {}
    for answer in task.answers:
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


def plain_windows(
    model: LoadedModel, paragraphs: Sequence[str], *, tokens: int, length: int = 128, max_tokens: int | None = None
) -> list[np.ndarray]:
    """About ``tokens`` tokens of running text in windows of one length, each behind the tokenizer's first special
    token.

    Raises:
        InputError: the text has fewer than 16 tokens.
    """
    limits = [length, tokens, *([max_tokens] if max_tokens else [])]
    declared = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = min(limits + ([int(declared)] if declared else []))
    encoded = encode_paragraphs(model, paragraphs, enough=tokens)
    opening = encode(model, [words[0]]) if (words := " ".join(paragraphs[:8]).split()) else None
    prefix = opening[0][:1] if opening is not None and opening.special_of(0)[0] else np.zeros(0, np.int32)
    body = length - len(prefix)
    count = max(1, min(tokens, len(encoded)) // body) if body > 0 else 0
    if len(encoded) < 16 or count == 0:
        raise InputError(f"wikitext: {len(encoded)} tokens of plain text are too few; give some paragraphs")
    body = min(body, len(encoded))
    return [np.concatenate([prefix, encoded[i * body : (i + 1) * body]]) for i in range(count)]


def encode_paragraphs(model: LoadedModel, paragraphs: Sequence[str], *, enough: int) -> np.ndarray:
    """Token ids, without special ones, of paragraphs joined by newlines, up to about ``enough`` of them."""
    pieces: list[int] = []
    for paragraph in paragraphs:
        # a paragraph at a time: a long text would only be refused or shortened as a whole
        pieces += model.tokenizer(paragraph + "\n", add_special_tokens=False, verbose=False)["input_ids"]
        if len(pieces) >= enough:
            break
    return np.array(pieces, dtype=np.int32)


def final_vectors(
    model: LoadedModel, encoded: Encoded, sites: Sequence[Site], *, batch_tokens: int, max_tokens: int | None
) -> dict[Site, np.ndarray]:
    """Final-token vectors float32 (N, D) at sites that may differ in width."""
    result: dict[Site, np.ndarray] = {}
    widths = {site: model.width(site) for site in dict.fromkeys(sites)}
    for width in sorted(set(widths.values())):
        same = [site for site, w in widths.items() if w == width]
        found = activations(model, encoded, same, batch_tokens=batch_tokens, max_tokens=max_tokens)
        result.update({site: found[:, i] for i, site in enumerate(same)})
    return result
