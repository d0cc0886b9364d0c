"""What the first pages show, run in order as a reader would: commands and Python, in an empty folder. Some minutes a page."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs_commands import ROOT, fences

pytestmark = pytest.mark.slow
PAGES = {
    "README.md": {},
    "docs/start.md": {},
    "docs/tutorial-embedded.md": {},
    "docs/results.md": {},
    "docs/exit.md": {
        "MODEL": "dense-tiny",
        "MOE": "moe-tiny",
        "texts": "['It was.', 'A cat sat on the mat.']",
        "**inputs": "**model.tokenizer('A', return_tensors='pt')",
        "text, max": "'A cat', max",
    },
}
"""A page, and what stands on it for what a reader puts there."""
ELSEWHERE = re.compile(r"^(make|pip|git|moescope (demo|serve))\b")
"""installs, serves, or is tried on its own"""
BEFORE = {"docs/results.md": ["moescope circuits dense-tiny --task certainty=halueval --limit 120 --out out"]}
"""What a page takes to have been run."""


def steps(page: str) -> list[tuple[str, str]]:
    """(language, what to run) of a page in order; Python as one program from where it begins."""
    found = [("", line) for line in BEFORE.get(page, [])]
    for language, block in fences(ROOT / page):
        for old, new in PAGES[page].items():
            block = block.replace(old, new)
        if language == "python":
            found.append(("python", block))
        elif language == "":
            lines = [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]
            found += [("", re.sub(r"\s*\[--.*?\]", "", line)) for line in lines if line.startswith("moescope ")]
    return [(language, text) for language, text in found if not ELSEWHERE.match(text)]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_it_is_shown(page: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    program, ran = "", steps(page)
    assert ran, "nothing on the page is run"
    for language, text in ran:
        program += text if language else ""
        command = ["-c", program] if language else ["-m", *shlex.split(text)]
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{page}: {text}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
