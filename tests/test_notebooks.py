"""The notebooks of `examples/` run, and what they keep is what a run shows."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="of the extra test")
pytest.importorskip("nbclient", reason="of the extra test")

from tools.notebooks import EXAMPLES, executed  # noqa: E402

NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def test_there_are_four() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["convert", "own-data", "own-model", "vllm-trace"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_as_much_as_it_keeps(path: Path, tmp_path: Path) -> None:
    kept = nbformat.read(path, as_version=4)
    found = executed(path, tmp_path)  # a cell that fails ends it
    for before, after in zip(kept.cells, found.cells, strict=True):
        kinds = [[(o.output_type, *sorted(o.get("data", {}))) for o in cell.get("outputs", [])] for cell in (before, after)]
        assert kinds[0] == kinds[1], f"{path.name}: run python tools/notebooks.py {path.stem}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_it_keeps_can_be_handed_on(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    kept = nbformat.read(path, as_version=4)
    assert kept.cells[0].cell_type == "markdown"
    assert kept.cells[0].source.startswith("# ")
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert all(cell.outputs or cell.source.startswith(("#", "from", "import")) for cell in code), "a cell shows nothing"
    assert len(text) < 700_000
    for word in ("/home/", "/root/", "/tmp/", "Traceback", "site-packages"):
        assert word not in text
