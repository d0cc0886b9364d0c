"""The site of the documents, without what builds it: every page has its place, every link and heading is there."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import api
from tools.site import DOCS, ROOT, index, inside

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def listed(nav: Any) -> list[str]:
    """The pages of a part of the navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    values = nav if isinstance(nav, list) else nav.values()
    return [page for value in values for page in listed(value)]


PAGES = listed(CONFIG["nav"])


def text_of(page: str) -> str:
    """A page as the site has it."""
    return index() if page == "index.md" else inside((DOCS / page).read_text(encoding="utf-8"), DOCS / page)


def anchors(text: str) -> set[str]:
    """The addresses of a page's headings, made as Markdown's toc makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", FENCE.sub("", text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())
        number = 1
        while slug in found:
            slug, number = f"{slug.removesuffix(f'_{number - 1}')}_{number}", number + 1
        found.add(slug)
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    assert len(PAGES) == len(set(PAGES))
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    left_out = {name for name in written if name.startswith(("evidence/", "plan/"))}
    assert set(PAGES) - {"index.md"} == written - left_out


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_headings_and_pictures(page: str) -> None:
    here = DOCS / page
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (here.parent / path).resolve() if path else here
        assert target.is_relative_to(ROOT), link
        assert target.exists() or target == DOCS / "index.md", f"{page} links to {link}"
        if anchor and target.suffix == ".md":
            found = anchors(text_of(str(target.relative_to(DOCS))))
            assert anchor in found, f"{page} links to {link}; there are {sorted(found)}"


def test_a_link_that_leaves_the_documents_becomes_its_text() -> None:
    text = inside("[the code](../src/moescope/types.py), [a page](tasks.md#splits), ![x](models/figures/a.png)", DOCS / "a.md")
    assert text == "the code (`src/moescope/types.py`), [a page](tasks.md#splits), ![x](models/figures/a.png)"


def test_the_python_interface_is_what_the_docstrings_say() -> None:
    assert Path(api.PAGE).read_text(encoding="utf-8") == api.page(), "run python tools/api.py"


def test_the_first_page_has_its_pictures() -> None:
    assert "](models/figures/" in index()
    assert "](docs/" not in index()
