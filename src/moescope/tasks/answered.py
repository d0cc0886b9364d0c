"""Questions that a model has answered, as a task of two classes: is the answer wrong or right?"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moescope.tasks.build import RenderedTask
from moescope.tasks.predictors import Predictor, by_threshold, by_value
from moescope.tasks.questions import Place
from moescope.types import Task

WRONG, RIGHT = 0, 1
CLASSES = ("wrong", "right")
ANSWER = "answer: "
"""How the cues begin that are read off the model's own answer."""
DIFFICULTY = "difficulty"


@dataclass(frozen=True)
class Answer:
    """One answer, greedily written. Log-probabilities and entropies, in nats, are of its tokens and the one that ended it.

    Attributes:
        tokens: of the answer alone.
        log_probability: mean over tokens; ``least``: the lowest; ``total``: their sum.
        entropy: of the next token, mean over tokens.
    """

    question: str
    text: str
    tokens: int
    log_probability: float
    least: float
    total: float
    entropy: float
    difficulty: str = ""


@dataclass(frozen=True)
class Answered(RenderedTask):
    """A task of two classes, wrong and right; what is known of a row is by its rendered text.

    With ``at="question"`` a text is the question, and its last token what comes before the answer; with ``"answer"`` the answer
    stands behind it. ``ids_of`` (int32) are the tokens that the model read and wrote, ``special_of`` (bool) which of them the
    tokenizer or the chat template put.
    """

    at: Place = "question"
    answer_of: dict[str, Answer] = field(default_factory=dict, compare=False, repr=False)
    ids_of: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    special_of: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def answers_given(self) -> list[Answer]:
        """Of each row."""
        return [self.answer_of[e.text] for e in self.examples]


def answer_cues(task: Task) -> dict[str, Predictor]:
    """What the answer itself gives away: the rivals of anything that is read inside the model; nothing for other tasks."""
    if not isinstance(task, Answered):
        return {}
    given = task.answers_given
    cues = {
        f"{ANSWER}mean log-probability": by_threshold(np.array([a.log_probability for a in given]), 2),
        f"{ANSWER}least log-probability": by_threshold(np.array([a.least for a in given]), 2),
        f"{ANSWER}mean entropy": by_threshold(np.array([a.entropy for a in given]), 2),
        f"{ANSWER}length in tokens": by_threshold(np.array([a.tokens for a in given]), 2),
        f"{ANSWER}its first word": by_value(np.array([(a.text.casefold().split() or [""])[0] for a in given])),
    }
    if any(a.difficulty for a in given):
        cues[DIFFICULTY] = by_value(np.array([a.difficulty for a in given]))
    return cues
