"""The answer of a result in a few sentences: what to believe, what not, what is open, and what to do next.

Every sentence is put together from claims: their statement, the figure, what stands against it, the verdict. A study orders its
claims by weight, so those that come first are said first; the same claim on several tasks is one sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moescope.report.format import number
from moescope.types import Claim

SAID = 3
"""sentences under a heading; the rest is counted"""
_HEADINGS = ("Believe", "Do not believe", "Not settled")
_ADVICE = "recommendation"


@dataclass(frozen=True)
class Sentence:
    """One statement, of one task or several."""

    statement: str
    places: tuple[tuple[str, str, str], ...]
    """task or empty, figure, what is said beside it"""
    against: str
    """what all figures stand beside, where that is one thing"""

    def __str__(self) -> str:
        said = "; ".join(" ".join(filter(None, place)) for place in self.places)
        return f"{self.statement}: {said}{f' ({self.against})' if self.against else ''}"


@dataclass(frozen=True)
class Part:
    """One heading with its first sentences; ``more`` counts those left out."""

    heading: str
    sentences: tuple[Sentence, ...]
    more: int


@dataclass(frozen=True)
class Answer:
    """What a reader should take away."""

    advice: tuple[str, ...]
    """recommendations, one a task"""
    parts: tuple[Part, ...]
    then: tuple[str, ...]
    """what to do next"""

    def lines(self) -> list[str]:
        """As plain text, a line a sentence."""
        found = [f"Recommended: {advice}." for advice in self.advice]
        for part in self.parts:
            found += [f"{part.heading}: {sentence}." for sentence in part.sentences]
            found += [f"{part.heading}: {part.more} more."] if part.more else []
        return [*found, *(f"Next: {step}" for step in self.then)]


def answer(claims: Sequence[Claim], tasks: Iterable[str] = ()) -> Answer:
    """The answer that ``claims`` give; ``tasks`` are names that their statements may begin with."""
    names = tuple(tasks)
    advice: list[str] = []
    order: dict[str, int] = {}
    sorted_out: dict[str, dict[str, list[tuple[str, Claim]]]] = {heading: {} for heading in _HEADINGS}
    for claim in claims:
        task, statement = _split(claim.statement, names)
        order.setdefault(statement, len(order))
        if statement.startswith(_ADVICE):
            if claim.outcome != "not tested":
                advice.append(f"{task + ': ' if task else ''}{claim.measured}")
        elif (heading := _heading(claim)) is not None:
            sorted_out[heading].setdefault(statement, []).append((task, claim))
    parts = []
    for heading, groups in sorted_out.items():
        sentences = [
            _sentence(statement, members) for statement, members in sorted(groups.items(), key=lambda group: order[group[0]])
        ]
        if sentences:
            parts.append(Part(heading, tuple(sentences[:SAID]), max(0, len(sentences) - SAID)))
    return Answer(tuple(advice), tuple(parts), tuple(_then(claims)))


def _split(statement: str, tasks: Sequence[str]) -> tuple[str, str]:
    task = next((t for t in tasks if statement.startswith(f"{t}: ")), "")
    return task, statement[len(task) + 2 :] if task else statement


def _heading(claim: Claim) -> str | None:
    match claim.outcome:
        case "holds" | "reproduced" | "weaker":
            return _HEADINGS[claim.explanation not in (None, "none found")]
        case "contradicted":
            return _HEADINGS[1]
        case "inconclusive" | "undertrained":
            return _HEADINGS[2]
    return None


def _sentence(statement: str, members: Sequence[tuple[str, Claim]]) -> Sentence:
    beside = [_beside(claim) for _, claim in members]
    names = {name for name, _ in beside}
    against = names.pop() if len(names) == 1 else ""
    places = []
    for (task, claim), (name, value) in zip(members, beside, strict=True):
        said = (
            f"beside {value}"
            if against and value
            else f"({' '.join(filter(None, (name, value)))})"
            if not against and name
            else ""
        )
        places.append((task, number(claim.measured), said))
    return Sentence(statement[:1].upper() + statement[1:], tuple(places), against)


def _beside(claim: Claim) -> tuple[str, str]:
    """What explains the figure or what it stands beside, and the value of that."""
    if claim.outcome == "undertrained":
        return "students too little trained", ""
    by, control = claim.details.get("by"), claim.control
    name = f"explained by {by.removeprefix('with ')}" if by else control.name if control is not None else ""
    return name, number(control.value) if control is not None else ""


def _then(claims: Sequence[Claim]) -> Iterable[str]:
    cues = [c.details["by"] for c in claims if c.explanation == "trivial cue" and c.outcome == "holds" and c.details.get("by")]
    for cue in list(dict.fromkeys(cues))[:SAID]:
        yield f"test texts in which {cue} tells nothing, before anything is built on what it explains."
    if any(c.explanation == "leakage" for c in claims):
        yield "part near-duplicates by group, and measure again."
    if any(c.outcome == "undertrained" for c in claims):
        yield "train longer; nothing follows from these students."
    more = sorted(float(c.details["more"]) for c in claims if c.details.get("more"))
    if len(more) == 1:
        yield f"about {_times(more[0])} times as much text would settle an open claim."
    elif more:
        yield f"about {_times(more[(len(more) - 1) // 2])} times as much text would settle half of the {len(more)} open claims."


def _times(value: float) -> str:
    """Two figures at most: it is an estimate."""
    if value < 10:
        return f"{value:.1f}".removesuffix(".0")
    digits = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / digits) * digits:,}"
