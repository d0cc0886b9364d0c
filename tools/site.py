"""What `mkdocs build` needs beside the pages (`hooks` of mkdocs.yml): the README as the first page, links that leave `docs/`.

A document links to sources, benchmarks and notebooks of the tree, which are no pages: there the text stays, with the path.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def index() -> str:
    """The README as a page of `docs/`."""
    return _LINK.sub(lambda m: f"{m[1]}[{m[2]}]({_moved(m[3])})", (ROOT / "README.md").read_text(encoding="utf-8"))


def _moved(link: str) -> str:
    """A link of the README, from `docs/`."""
    if re.match(r"[a-z]+:|#", link):
        return link
    return link.removeprefix("docs/") if link.startswith("docs/") else f"../{link}"


def inside(text: str, page: Path) -> str:
    """The text of ``page`` (in `docs/`) with links to what is no page written as their text and a path."""

    def kept(found: re.Match[str]) -> str:
        path = found[3].partition("#")[0]
        if found[1] or not path or re.match(r"[a-z]+:", path):
            return found[0]
        target = (page.parent / path).resolve()
        if target.suffix == ".md" and target.is_relative_to(DOCS):
            return found[0]
        named = str(target.relative_to(ROOT))
        return found[2] if named in found[2] else f"{found[2]} (`{named}`)"

    return _LINK.sub(kept, text)


def on_files(files: Any, config: Any) -> Any:
    """Add the first page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "index.md", content=index()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Of each page, the links."""
    return inside(markdown, DOCS / page.file.src_uri)
