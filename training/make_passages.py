"""Write the passages that the package ships: text of each prompt category that no embedded model was trained on.

    python -m training.make_passages

Code, stories and encyclopedia come from the held-out documents of `training/corpus.py`, mathematics from GSM8K's test set,
which the embedded models never saw.
"""

from __future__ import annotations

import json
import lzma
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from training.corpus import _paragraph_chunks, documents, is_held_out, rows, wikitext_articles

TARGET = Path(__file__).parents[1] / "src/moescope/tasks/data/category_passages.jsonl.xz"
PER_CATEGORY = 60
MAX_CHARACTERS = 900


def code() -> Iterator[tuple[str, str, str]]:
    for number, row in enumerate(rows("humaneval.jsonl")):
        if is_held_out(row["prompt"] + row["canonical_solution"]):
            yield f"HumanEval/{number}", "HumanEval", row["prompt"] + row["canonical_solution"]
    for number, row in enumerate(rows("mbpp.jsonl")):
        text = f'"""{row["prompt"]}"""\n' + row["code"].replace("\r\n", "\n")
        if is_held_out(text):
            yield f"MBPP/{number}", "MBPP", text


def mathematics() -> Iterator[tuple[str, str, str]]:
    for number, row in enumerate(rows("gsm8k.test.jsonl")[:PER_CATEGORY]):
        yield f"GSM8K/{number}", "GSM8K", f"Question: {row['question']}\nAnswer: {row['answer']}"


def stories() -> Iterator[tuple[str, str, str]]:
    for number, chunk in enumerate(documents("stories")):
        if is_held_out(chunk):
            for piece in pieces(chunk):
                yield f"stories/{number}", "Grimm and Shakespeare", piece


def encyclopedia() -> Iterator[tuple[str, str, str]]:
    chunks = [c for a in wikitext_articles("wikitext-2.valid.txt") for c in _paragraph_chunks(a, 3000)]
    for number, chunk in enumerate(chunks):
        if is_held_out(chunk):
            for piece in pieces(chunk):
                yield f"WikiText/{number}", "WikiText-2", piece


def pieces(chunk: str) -> Iterator[str]:
    """The first three pieces of whole paragraphs, of some hundred characters each, without headings."""
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n|\n(?= ?=)|(?<=\.) ?\n", chunk)]
    body = "\n\n".join(p for p in paragraphs if p and not p.startswith("="))
    found = [p for p in _paragraph_chunks(body, 500) if len(p) >= 200]
    yield from found[:3]


def shortened(text: str) -> str:
    """At most MAX_CHARACTERS, cut at the end of a line or word."""
    if len(text) <= MAX_CHARACTERS:
        return text.rstrip()
    cut = text[:MAX_CHARACTERS]
    return cut[: max(cut.rfind("\n"), cut.rfind(" "))].rstrip()


def records() -> Iterator[dict[str, str]]:
    makers: dict[str, Iterable[tuple[str, str, str]]] = {
        "code": code(),
        "math": mathematics(),
        "story": stories(),
        "factual": encyclopedia(),
    }
    for category, found in makers.items():
        for _, (group, source, text) in zip(range(PER_CATEGORY), found, strict=False):
            yield {"category": category, "group": group, "source": source, "text": shortened(text)}


def main() -> None:
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records()).encode()
    temporary = TARGET.with_name(TARGET.name + ".tmp")
    temporary.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    os.replace(temporary, TARGET)
    print(f"{TARGET.name}: {len(data)} bytes of text, {TARGET.stat().st_size} compressed")


if __name__ == "__main__":
    main()
