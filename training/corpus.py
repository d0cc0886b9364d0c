"""The text that the embedded models are trained on: six categories of documents, each split into train and held-out.

Every source lies in `training/sources/` (xz) with its licence in `training/sources/LICENCES.md`; code also comes from the
running Python's own standard library. A document is held out when the SHA-256 of its text falls in the last 4 % of the
hash range, so the split never depends on order.

    python -m training.corpus            # print sizes per category
    python -m training.corpus FILE       # and write every training document into one text file, for other studies
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parent / "sources"
CATEGORIES = ("code", "mathematics", "stories", "encyclopedia", "reviews", "chat")
# Share of training tokens by category; reviews are few, so they repeat more often than the rest.
MIXTURE = {"code": 0.22, "mathematics": 0.12, "stories": 0.14, "encyclopedia": 0.25, "reviews": 0.03, "chat": 0.24}
HELD_OUT = 0.04
_STDLIB_SKIP = {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo"}


def read(name: str) -> str:
    """The text of one source file, decompressed."""
    return lzma.decompress((SOURCES / f"{name}.xz").read_bytes()).decode()


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in read(name).split("\n") if line.strip()]


def detokenize(text: str) -> str:
    """Undo WikiText's word tokenisation: joined hyphens and numbers, punctuation closed up."""
    text = re.sub(r" @([-.,])@ ", r"\1", text)
    text = re.sub(r" ([.,;:!?)\]%])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = text.replace(" 's", "'s").replace(" n't", "n't").replace("<unk>", "unknown")
    return re.sub(r'" ([^"]*?) "', r'"\1"', text)


def wikitext_articles(name: str) -> list[str]:
    """One document per article: a line ` = Title = ` starts one."""
    parts = re.split(r"\n (?== [^=].*? = \n)", "\n" + read(name))
    return [detokenize(part.strip()) for part in parts if len(part) > 200]


def _paragraph_chunks(text: str, size: int) -> Iterator[str]:
    chunk = ""
    for paragraph in re.split(r"\n\s*\n", text):
        chunk += paragraph.strip("\n") + "\n\n"
        if len(chunk) >= size:
            yield chunk.strip()
            chunk = ""
    if chunk.strip():
        yield chunk.strip()


def stdlib_files() -> list[Path]:
    """The running Python's standard library without its tests, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if not _STDLIB_SKIP & set(path.relative_to(root).parts))
    return [path for path in files if path.stat().st_size > 400]


def _stories() -> Iterator[str]:
    grimm = read("grimm.txt").replace("\r", "")
    body = grimm.split("*** START OF", 1)[1].split("*** END OF", 1)[0].split("FOREWORD", 1)[1]
    body = re.sub(r"\[Illustration[^\]]*\]", "", body)
    yield from _paragraph_chunks(body.replace("_", ""), 3000)
    yield from _paragraph_chunks(read("shakespeare.txt"), 3000)


def _reviews() -> Iterator[str]:
    # Each training review stands once bare and once in the template of the `uci-sentiment` task, so that the model
    # has an answer of its own to that question. The task's test rows are not among them.
    data = Path(__file__).parents[1] / "src/moescope/tasks/data/uci_sentiment.jsonl.xz"
    for line in lzma.decompress(data.read_bytes()).decode().split("\n")[:-1]:
        row = json.loads(line)
        if row["split"] == "train":
            yield row["text"]
            yield f"Review: {row['text']}\nSentiment: {'positive' if row['label'] else 'negative'}"


def documents(category: str) -> list[str]:
    """All documents of a category, in a fixed order."""
    if category == "code":
        stdlib = [p.read_text(encoding="utf-8", errors="replace") for p in stdlib_files()]
        chunks = [c for text in stdlib for c in _paragraph_chunks(text, 3000)]
        human = [r["prompt"] + r["canonical_solution"] for r in rows("humaneval.jsonl")]
        mbpp = [f'"""{r["prompt"]}"""\n' + r["code"].replace("\r\n", "\n") for r in rows("mbpp.jsonl")]
        return chunks + human + mbpp
    if category == "mathematics":
        return [f"Question: {r['question']}\nAnswer: {r['answer']}" for r in rows("gsm8k.train.jsonl")]
    if category == "stories":
        return list(_stories())
    if category == "encyclopedia":
        boolq = [
            f"{r['passage']}\nQuestion: {r['question']}?\nAnswer: {'yes' if r['label'] else 'no'}"
            for r in rows("boolq.dev.jsonl")
        ]
        return [c for a in wikitext_articles("wikitext-2.valid.txt") for c in _paragraph_chunks(a, 3000)] + boolq
    if category == "reviews":
        return list(_reviews())
    if category == "chat":
        return [f"Question: {r['query']}\nAnswer: {r['response']}" for r in rows("halueval_general.jsonl")]
    raise ValueError(f"unknown category {category!r}; known: {', '.join(CATEGORIES)}")


def is_held_out(document: str) -> bool:
    digest = hashlib.sha256(document.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 >= 1 - HELD_OUT


def split(category: str) -> tuple[list[str], list[str]]:
    """(train, held-out) documents of a category. A review and its templated form fall on the same side."""
    train: list[str] = []
    held: list[str] = []
    for document in documents(category):
        key = re.sub(r"^Review: (.*)\nSentiment: \w+$", r"\1", document, flags=re.S)
        (held if is_held_out(key) else train).append(document)
    return train, held


def one_text() -> str:
    """Every training document, mixed in an order that depends on their content alone; a blank line parts them."""
    every = [re.sub(r"\n\s*\n", "\n", document) for category in CATEGORIES for document in split(category)[0]]
    return "\n\n".join(sorted(every, key=lambda document: hashlib.sha256(document.encode()).digest())) + "\n"


def main() -> None:
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(one_text(), encoding="utf-8")
    for category in CATEGORIES:
        train, held = split(category)
        print(f"{category:14} train {len(train):6} docs {sum(map(len, train)):9} chars   held out {len(held):5} docs")


if __name__ == "__main__":
    main()
