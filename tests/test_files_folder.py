"""A folder is written whole or not at all, and nothing that is not its own is deleted, whatever links lie in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from moescope import StudyResult, load
from moescope.errors import InputError

MINE = "years of work"


class Weights:
    """An artifact of some files."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def write(self, folder: Path, /) -> None:
        for name in self.names:
            (folder / name).write_text(f"of {name}")


def saved(folder: Path, artifacts: dict[str, Weights], *, overwrite: bool = False) -> StudyResult:
    StudyResult("x", artifacts=dict(artifacts)).save(folder, overwrite=overwrite, figures=False)
    return load(folder)


def test_a_checkpoint_stands_in_the_folder_itself(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = saved(out, {"mask": Weights("mask.json"), "checkpoint": Weights("config.json", "model.safetensors")})
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert names == {"config.json", "model.safetensors", "mask/mask.json", "results.json"}
    result.save(tmp_path / "copy", figures=False)  # a loaded one is its files, not the folder that they stand in
    assert {p.relative_to(tmp_path / "copy").as_posix() for p in (tmp_path / "copy").rglob("*") if p.is_file()} == names
    (out / "config.json").write_text("changed")
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        load(out)


def test_overwriting_deletes_what_the_result_wrote_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    saved(out, {"checkpoint": Weights("config.json", "old.safetensors"), "students/a": Weights("student.safetensors")})
    (out / "thesis.tex").write_text(MINE)
    (out / "students" / "notes.txt").write_text(MINE)
    (out / "students" / "a" / "notes.txt").write_text(MINE)
    (out / "model.safetensors").write_text(MINE)
    saved(out, {"checkpoint": Weights("config.json", "model.safetensors")}, overwrite=True)
    kept = ("thesis.tex", "students/notes.txt", "students/a/notes.txt", "model.safetensors.kept")
    assert [(out / name).read_text() for name in kept] == [MINE] * 4
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert names == {*kept, "config.json", "model.safetensors", "results.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_no_link_is_followed_out_of_the_folder(tmp_path: Path) -> None:
    """Where a result's own parts have been replaced by links, the links go and what they point to stays."""
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    saved(out, {"students/a": Weights("student.safetensors")})
    (theirs / "a").mkdir(parents=True)
    (theirs / "a" / "student.safetensors").write_text(MINE)
    (theirs / "my.parquet").write_text(MINE)
    for name in ("students", "tables"):
        if (out / name).exists():
            (out / name).rename(tmp_path / f"moved-{name}")
        (out / name).symlink_to(theirs)
    saved(out, {"students/a": Weights("student.safetensors")}, overwrite=True)
    assert (theirs / "a" / "student.safetensors").read_text() == (theirs / "my.parquet").read_text() == MINE
    assert not (out / "students").is_symlink()
    assert not (out / "tables").is_symlink()
    assert (out / "students" / "a" / "student.safetensors").read_text() == "of student.safetensors"
