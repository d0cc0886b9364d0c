"""The field's words, linked to what they mean: ``glossary.toml`` beside this module is the one list of them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Term:
    """A word of the field."""

    id: str
    words: tuple[str, ...]
    """how it is written"""
    says: str

    @property
    def head(self) -> str:
        return self.words[0]


@cache
def terms() -> dict[str, Term]:
    """All of them, by id."""
    data = tomllib.loads(files(__package__).joinpath("glossary.toml").read_text(encoding="utf-8"))
    return {name: Term(name, tuple(entry["words"]), entry["says"]) for name, entry in data.items()}


@cache
def _pattern() -> tuple[re.Pattern[str], dict[str, str]]:
    """What finds a word, the longest first, and the term of each; a word in lower case is found with a capital too."""
    known = {word: term.id for term in terms().values() for word in term.words}
    known |= {word[0].upper() + word[1:]: name for word, name in known.items() if word.islower() and len(word) > 1}
    words = "|".join(re.escape(word) for word in sorted(known, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{words})(?![\w-]|(?<=p)\.)"), known


@dataclass
class Glossary:
    """The words of one page: each links to its meaning at the page's end, where those stand that the page has used."""

    used: set[str] = field(default_factory=set)

    def link(self, text: object) -> Markup:
        """``text``, escaped, the first of each of its words a link. The first link of the page alone is a stop of the tab key;
        the others are for the pointer."""
        text, out, here, at = str(text), Markup(), set[str](), 0
        pattern, known = _pattern()
        for match in pattern.finditer(text):
            name = known[match[0]]
            if name in here:
                continue
            out += escape(text[at : match.start()])
            out += Markup('<a class="term" href="#term-{}"{}>{}</a>').format(
                name, Markup(' tabindex="-1"') if name in self.used else "", match[0]
            )
            here.add(name)
            self.used.add(name)
            at = match.end()
        return out + escape(text[at:])

    def shown(self) -> list[Term]:
        """The terms that were linked, by name."""
        return sorted((terms()[name] for name in self.used), key=lambda term: term.head.lower())
