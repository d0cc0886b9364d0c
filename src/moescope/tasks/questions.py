"""Questions that a model is to answer by itself: what counts as right, and made sums of graded length.

A task of this kind has no labels yet: whether an answer is right is known once a model has answered
(:func:`moescope.capture.answers.answered`).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from moescope.errors import InputError
from moescope.tasks.build import RenderedTask, normalise
from moescope.tasks.labels import missing
from moescope.tasks.sources import Rows
from moescope.tasks.spec import TaskSpec, choice, suggest

OPTIONS = ("answer", "check", "new_tokens", "until", "difficulty", "at")
"""Of a specification, beside those of other tasks."""
Place = Literal["question", "answer"]
_NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?|[-−]?\.\d+")
_ARTICLES = ("a", "an", "the")
_MOST_NEW = 4096
_WORKED = ((20, 10), (14, 5), (3, 2))  # shown with their results, and not asked
_WORD_TOKENS = 4  # of an answer that is one of a few words


def _words(text: str) -> list[str]:
    return [word for word in normalise(text).split() if word not in _ARTICLES]


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def _exact(answer: str, accepted: str) -> bool:
    return _words(answer) == _words(accepted)


def _first(answer: str, accepted: str) -> bool:
    wanted = _words(accepted)
    return _words(answer)[: len(wanted)] == wanted


def _contains(answer: str, accepted: str) -> bool:
    wanted, words = _words(accepted), _words(answer)
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))


def _numeric(place: int) -> Callable[[str, str], bool]:
    def same(answer: str, accepted: str) -> bool:
        found = _NUMBER.findall(answer)
        return bool(found) and _number(found[place]) == _number(accepted)

    return same


Check = Callable[[str, str], bool]
CHECKS: Mapping[str, Check] = {
    "exact": _exact,
    "first": _first,
    "contains": _contains,
    "number": _numeric(0),
    "last-number": _numeric(-1),
}
"""Whether an answer agrees with an accepted one, by name: the same words up to case, punctuation and articles; beginning with
them; containing them; its first number; its last number."""
_NUMERIC = ("number", "last-number")


@dataclass(frozen=True)
class Asked:
    """How the questions of a task are asked, and what is right; a part of a task that is being read.

    Attributes:
        accepted: for each row the answers that count as right.
        difficulty: for each row; None where it is not known.
        new_tokens: that an answer may have.
        until: ``line``: an answer ends with its first line; ``end``: where the model ends it.
        at: where the model is read: at the last token of the ``question``, or of its ``answer``.
    """

    accepted: list[tuple[str, ...]]
    difficulty: list[str] | None
    check: str
    new_tokens: int
    until: str
    at: Place


@dataclass(frozen=True)
class Questions(RenderedTask):
    """Questions for a model, of kind ``"answers"``: their labels are those of no model yet, all 0.

    ``accepted_of`` and ``difficulty_of`` are by the rendered question; the rest is as in :class:`Asked`.
    """

    accepted_of: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False, repr=False)
    difficulty_of: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    check: str = "exact"
    new_tokens: int = 16
    until: str = "line"
    at: Place = "question"

    def is_right(self, question: str, answer: str) -> bool:
        """Whether ``answer`` is one of those that count as right."""
        return any(CHECKS[self.check](answer, accepted) for accepted in self.accepted_of[question])


def asked_of(
    rows: Rows,
    spec: TaskSpec,
    words: Sequence[str] = (),
    labels: Sequence[int] = (),
    *,
    check: str = "exact",
    new_tokens: int = 16,
    until: str = "line",
) -> Asked:
    """What the options of a specification say, beside rows with a column of answers or classes with answer words.

    Args:
        words: for each class the word that is right, where the answer follows from a label; then ``labels`` are the rows'.
        check, new_tokens, until: what holds where the specification does not say.

    Raises:
        InputError: no such option, a row without an answer, or one that is no number where numbers are compared.
    """
    named, context = spec.options, f"task {spec.text!r}"
    check = choice(spec, "check", "first" if words else check, CHECKS)
    until = choice(spec, "until", until, ("line", "end"))
    at: Any = choice(spec, "at", "question", ("question", "answer"))
    wanted = named.get("new_tokens", str(_WORD_TOKENS if words else new_tokens))
    if not wanted.isdecimal() or not 1 <= int(wanted[:9]) <= _MOST_NEW:
        raise InputError(f"{context}: new_tokens={wanted!r} is not a whole number from 1 to {_MOST_NEW}")
    accepted: list[tuple[str, ...]]
    if words:
        accepted = [(words[label].strip(),) for label in labels]
    else:
        column = named.get("answer", "answer")
        accepted = [_accepted(record.get(column), column, rows.where(i)) for i, record in enumerate(rows.records)]
    if check in _NUMERIC:
        for i, answers in enumerate(accepted):
            odd = next((text for text in answers if not _NUMBER.fullmatch(text)), None)
            if odd is not None:
                raise InputError(f"{rows.where(i)}: the answer {odd!r} is no number; use check=exact, or mend the row")
    difficulty = None
    hard = named.get("difficulty") or ("difficulty" if "difficulty" in rows.columns else None)
    if hard is not None:
        if hard not in rows.columns:
            have = ", ".join(rows.columns)
            raise InputError(f"{rows.origin}: no column {hard!r}{suggest(hard, rows.columns)}; columns: {have}")
        gap = next((i for i, record in enumerate(rows.records) if missing(record.get(hard))), None)
        if gap is not None:
            raise InputError(f"{rows.where(gap)}: column {hard!r} is missing; fill it in or leave difficulty= out")
        difficulty = [str(record[hard]) for record in rows.records]
    return Asked(accepted, difficulty, check, int(wanted), until, at)


def _accepted(value: Any, column: str, where: str) -> tuple[str, ...]:
    parts = list(value) if isinstance(value, list | tuple) else [value]
    if not parts or any(missing(part) or isinstance(part, dict | list) for part in parts):
        raise InputError(f"{where}: column {column!r} holds no answer; write one, or a list of those that count as right")
    whole = [int(part) if isinstance(part, float) and part.is_integer() else part for part in parts]
    return tuple(("yes" if part else "no") if isinstance(part, bool) else str(part).strip() for part in whole)


def arithmetic_rows(spec: TaskSpec) -> Rows:
    """Made sums: ``question`` (``"12 + 34"``), ``answer``, ``difficulty`` (digits of both numbers), ``group`` and ``worked``,
    three others with their results.

    ``digits=1-3`` is the range of digits, ``operation=`` add, subtract (the larger first) or multiply, ``rows=`` how many at
    most, the same number of each difficulty, ``seed=`` what they are drawn from. The two orders of one pair are a group.

    Raises:
        InputError: an option is out of range.
    """
    context = f"task {spec.text!r}"
    given = spec.options.get("digits", "1-3")
    bounds = re.fullmatch(r"([1-9])(?:-([1-9]))?", given)
    least, most = (int(bounds[1]), int(bounds[2] or bounds[1])) if bounds else (1, 0)
    if least > most:
        raise InputError(f"{context}: digits={given!r} is not a range of digits from 1 to 9; write for example digits=1-3")
    sign = {"add": "+", "subtract": "-", "multiply": "*"}[choice(spec, "operation", "add", ("add", "subtract", "multiply"))]
    numbers = {}
    for key, default, low in (("rows", "300", 12), ("seed", "0", 0)):
        text = spec.options.get(key, default)
        if not text.isdecimal() or len(text) > 6 or int(text) < low:
            raise InputError(f"{context}: {key}={text!r} is not a whole number from {low} to 999999")
        numbers[key] = int(text)
    rng = np.random.default_rng(numbers["seed"])
    solved: Callable[[int, int], int] = {"+": operator.add, "-": operator.sub, "*": operator.mul}[sign]
    worked = "\n".join(f"{a} {sign} {b} = {solved(a, b)}" for a, b in _WORKED)
    levels = [(a, b) for a in range(least, most + 1) for b in range(least, a + 1)]
    share = -(-numbers["rows"] // len(levels))
    records: list[dict[str, Any]] = []
    for longer, shorter in levels:
        seen = set(_WORKED)
        for _ in range(20 * share):  # of one digit there are few pairs
            if len(seen) == share + len(_WORKED) or len(records) == numbers["rows"]:
                break
            pair = [int(rng.integers(10 ** (d - 1) if d > 1 else 0, 10**d)) for d in (longer, shorter)]
            a, b = sorted(pair, reverse=True) if sign == "-" else rng.permutation(pair).tolist()
            if (a, b) in seen:
                continue
            seen.add((a, b))
            group = f"{max(a, b)} {sign} {min(a, b)}"
            level = f"{longer} and {shorter} digits" if longer > 1 else "1 and 1 digit"
            records.append(
                {
                    "question": f"{a} {sign} {b}",
                    "answer": str(solved(a, b)),
                    "difficulty": level,
                    "group": group,
                    "worked": worked,
                }
            )
    return Rows(records, list(records[0]), "arithmetic", "sum", list(range(1, len(records) + 1)))
