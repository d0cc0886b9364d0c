"""Prompts with the category that a model's routing may tell, and what else they share: topic and surface template.

``routing-80`` follows the published protocol (20 prompts each of code, math, story and factual); ``routing-480`` crosses
24 topics with five templates in every category, so that neither a topic nor a way of asking is the category.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from moescope.errors import InputError
from moescope.tasks.given import given_rows
from moescope.tasks.sources import SUFFIXES, Rows, names_file, read_file, read_json
from moescope.tasks.spec import suggest

PROMPT_SETS = {
    "routing-80": "20 prompts each of code, math, story and factual, one a topic and category (as many as published)",
    "routing-480": "24 topics x 5 templates x 4 categories: code, math, story, factual",
}
_FILE = "routing_prompts.jsonl"
_FIELDS = ("id", "text", "category", "topic", "template")


@dataclass(frozen=True)
class Prompt:
    """One prompt. ``topic`` is what it is about, ``template`` how it asks; None where unknown."""

    id: str
    text: str
    category: str | None = None
    topic: str | None = None
    template: str | None = None

    @property
    def group(self) -> str | None:
        """``"topic/template"``, the form in which a routing trace keeps both; None where neither is known."""
        if self.topic is None and self.template is None:
            return None
        return f"{self.topic or ''}/{self.template or ''}"


def split_group(group: str | None) -> tuple[str | None, str | None]:
    """(topic, template) of a :attr:`Prompt.group`; a group without a slash is a topic."""
    topic, _, template = (group or "").partition("/")
    return topic or None, template or None


def load_prompts(source: str | Path | Any, *, limit: int | None = None, seed: int = 0) -> list[Prompt]:
    """Read a shipped prompt set by name, a JSONL, CSV or Parquet file, or a table in memory.

    A table needs the column ``text``; ``id``, ``category``, ``topic`` and ``template`` are read where they stand. Missing
    ids are the row's number.

    Args:
        source: a table in memory is what :func:`load_task` takes for one, with ``category`` for the label: texts by category, a
            DataFrame, a list of texts, of (text, category) or of prompts ….
        limit: draw at most this many prompts, the same number of each category as far as they go.
        seed: of that draw; the order of the source is kept.

    Raises:
        InputError: the set or file does not exist or cannot be read, a text is missing or empty, or an id stands twice;
            the message names file and row.
    """
    name = str(source) if isinstance(source, str | Path) else ""
    if isinstance(source, Sequence) and source and all(isinstance(p, Prompt) for p in source):
        prompts = list(source)
    elif not isinstance(source, str | Path):
        prompts = _prompts(given_rows(source, label="category", parameter="prompts"))
    elif name in PROMPT_SETS:
        prompts = _prompts(_shipped())
        if name == "routing-80":
            prompts = _published_size(prompts)
    elif isinstance(source, Path) or names_file(name):
        prompts = _prompts(read_file(Path(os.path.expanduser(name))))
    else:
        raise InputError(
            f"unknown prompt set {name!r}{suggest(name, PROMPT_SETS)}; sets: {', '.join(PROMPT_SETS)}; "
            f"or give a file ({', '.join(SUFFIXES)})",
            "prompts",
        )
    return _limited(prompts, limit, seed)


def _shipped() -> Rows:
    data = resources.files("moescope.tasks").joinpath("data", _FILE)
    return read_json(f"shipped {_FILE}", data.read_text(encoding="utf-8"))


def _published_size(prompts: list[Prompt]) -> list[Prompt]:
    """20 topics, one prompt for each category; the template moves on by one from topic to topic and category to category."""
    topics = list(dict.fromkeys(p.topic for p in prompts))[:20]
    templates = list(dict.fromkeys(p.template for p in prompts))
    categories = list(dict.fromkeys(p.category for p in prompts))

    def wanted(p: Prompt) -> bool:
        if p.topic not in topics:
            return False
        turn = topics.index(p.topic) + categories.index(p.category)
        return templates.index(p.template) == turn % len(templates)

    return [p for p in prompts if wanted(p)]


def _prompts(rows: Rows) -> list[Prompt]:
    if "text" not in rows.columns:
        raise InputError(f"{rows.origin}: no column 'text'; it has {', '.join(rows.columns)}; rename the one with the prompts")
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for i, record in enumerate(rows.records):
        text = record.get("text")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{rows.where(i)}: the prompt's text is empty; fill it in or remove the row")
        values = {key: _optional(record.get(key)) for key in _FIELDS if key != "text"}
        name = values.pop("id") or str(rows.numbers[i])
        if name in seen:
            raise InputError(f"{rows.where(i)}: id {name!r} stands already in {rows.place} {seen[name]}; ids must differ")
        seen[name] = rows.numbers[i]
        if values["topic"] and "/" in values["topic"]:
            raise InputError(f"{rows.where(i)}: topic {values['topic']!r} has a slash in it; write it without")
        prompts.append(Prompt(name, text, **values))
    return prompts


def _optional(value: Any) -> str | None:
    return None if value is None or str(value).strip() == "" else str(value).strip()


def _limited(prompts: list[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    if limit is None or limit >= len(prompts):
        return prompts
    if limit < 2:
        raise InputError(f"{limit} prompts are too few; a study needs at least two of each category", "limit")
    rng = np.random.default_rng(seed)
    members: dict[str | None, list[int]] = {}
    for i in rng.permutation(len(prompts)):
        members.setdefault(prompts[i].category, []).append(int(i))
    # Round by round, one of each category, until the limit is reached.
    order = sorted(((rank, n, i) for n, rows in enumerate(members.values()) for rank, i in enumerate(rows)))
    return [prompts[i] for i in sorted(i for _, _, i in order[:limit])]
