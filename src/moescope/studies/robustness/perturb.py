"""Prompts written otherwise: the changes that a signature should survive.

Every perturbation is a function of the text and a random generator. Paraphrases are templates and synonyms by rule, so that
they need no other model; they keep what is asked and change how.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moescope.studies.robustness.settings import PerturbationName

if TYPE_CHECKING:
    from moescope.tasks.prompts import Prompt

Perturbation = Callable[[str, np.random.Generator], str]

_FRAMES = (
    "Please help with the following. {}",
    "{} Thank you in advance.",
    "I would like you to do this: {}",
    "Here is my request. {}",
    "{} Take your time.",
)
# whole words, each way; they do not name a category
_SYNONYMS = (
    ("write", "compose"),
    ("explain", "describe"),
    ("find", "determine"),
    ("how many", "what number of"),
    ("big", "large"),
    ("small", "little"),
    ("begin", "start"),
    ("show", "give"),
    ("tell", "inform"),
    ("use", "employ"),
    ("get", "obtain"),
    ("about", "concerning"),
    ("each", "every"),
    ("also", "too"),
)
_SUFFIXES = (" Thanks!", " (Answer below.)", "\n\n", " ...", " Ok?", "\n---\n", " #1")
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_BESIDE = {key: row[i + 1] if i + 1 < len(row) else row[i - 1] for row in _KEYS for i, key in enumerate(row)}


def identity(text: str, rng: np.random.Generator) -> str:
    """The text as it is."""
    return text


def paraphrase(text: str, rng: np.random.Generator) -> str:
    """Another frame around the text, and synonyms where it has one of a short list's words."""
    for one, other in _SYNONYMS:
        first, second = (one, other) if rng.random() < 0.5 else (other, one)
        text = re.sub(rf"\b{first}\b", second, text)
        text = re.sub(rf"\b{first.capitalize()}\b", second.capitalize(), text)
    return _FRAMES[rng.integers(len(_FRAMES))].format(text)


def typo(text: str, rng: np.random.Generator, share: float = 0.05) -> str:
    """``share`` of the letters (one at least) dropped, doubled, swapped with the next or struck beside."""
    letters = [i for i, c in enumerate(text) if c.isascii() and c.isalpha()]
    if not letters:
        return text
    characters = list(text)
    count = max(1, round(share * len(letters)))
    for i in sorted(rng.choice(letters, size=min(count, len(letters)), replace=False), reverse=True):
        kind = rng.integers(4)
        if kind == 0:
            del characters[i]
        elif kind == 1:
            characters.insert(i, characters[i])
        elif kind == 2 and i + 1 < len(characters):
            characters[i], characters[i + 1] = characters[i + 1], characters[i]
        else:
            near = _BESIDE[characters[i].lower()]
            characters[i] = near.upper() if characters[i].isupper() else near
    return "".join(characters)


def suffix(text: str, rng: np.random.Generator) -> str:
    """A few harmless characters more at the end."""
    return text + _SUFFIXES[rng.integers(len(_SUFFIXES))]


def lower_case(text: str, rng: np.random.Generator) -> str:
    return text.lower()


def upper_case(text: str, rng: np.random.Generator) -> str:
    return text.upper()


PERTURBATIONS: dict[PerturbationName, Perturbation] = {
    "identity": identity,
    "paraphrase": paraphrase,
    "typo": typo,
    "suffix": suffix,
    "lower_case": lower_case,
    "upper_case": upper_case,
}


def perturbed(prompts: Sequence[Prompt], name: PerturbationName, seed: int = 0) -> list[Prompt]:
    """The prompts with perturbed texts; ids, categories and groups stay."""
    # one generator a prompt: leaving a prompt out must not change what the others become
    return [
        replace(prompt, text=PERTURBATIONS[name](prompt.text, np.random.default_rng([seed, row])))
        for row, prompt in enumerate(prompts)
    ]
