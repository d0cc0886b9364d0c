"""A result as a folder: it comes back equal, is whole or absent, and says in one line what is wrong with a folder."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

import moescope
from moescope.errors import InputError
from moescope.files import atomic, bundle
from moescope.files import folder as folders
from moescope.files.folder import umask
from moescope.report import registry as figures
from moescope.study import store
from moescope.study.result import StudyResult
from moescope.types import Circuit, Claim, Control, Neuron, Published, Site
from tests.seals import flip, write_sealed
from tests.synthetic_result import synthetic_result

NOISE = "files that are not of the result"


def _small() -> StudyResult:
    """Every kind of value that a result may hold."""
    claims = (
        Claim(
            "all",
            0.5,
            id="H2",
            published=Published("1.7 ± 0.1", "Table 1", 0.1),
            interval=(0.4, float("nan")),
            control=Control("chance", float("nan")),
            p=0.01,
            p_adjusted=0.02,
            family="f",
            outcome="holds",
            explanation="trivial cue",
            words="why",
            details={"kuncheva": np.float32(0.25)},
        ),
        Claim("nothing", float("nan")),
        Claim("text", "layers 2–4", published=Published(0, "§1"), control=Control("none", "none"), outcome="contradicted"),
    )
    circuits = {"a": Circuit("a", (Neuron(Site("mlp_act", 3), 17), Neuron(Site("resid", 0), 2)), (1.5, float("nan")), "total")}
    tables = {
        "mixed": pd.DataFrame(
            {"name": ["x", None], "n": [1, 2], "x": [0.5, float("nan")], "yes": [True, False], "list": [[1, 2], []]}
        ),
        "empty": pd.DataFrame({"a": pd.Series(dtype="float64"), "b": pd.Series(dtype="str")}),
    }
    meta = {"model": "m", "seed": np.int64(3), "nested": {"nan": float("nan"), "tuple": (1, Path("a/b"))}, "é": "ü"}
    return StudyResult("circuits", meta, claims, circuits, tables)


def _equal_nan(a: Claim, b: Claim) -> bool:
    return repr(a) == repr(b)


@pytest.mark.parametrize("make", [_small, lambda: synthetic_result(optional=False), lambda: StudyResult("empty")])
def test_what_is_loaded_equals_what_was_saved(make: Callable[[], StudyResult], tmp_path: Path) -> None:
    result = make()
    folder = result.save(tmp_path / "deep" / "down", figures=False)
    back = moescope.load(folder)
    assert back == result
    assert all(map(_equal_nan, back.claims, result.claims))
    assert repr(back.circuits) == repr(result.circuits)
    assert back.meta == result.meta
    assert {n: list(t.dtypes) for n, t in back.tables.items()} == {n: list(t.dtypes) for n, t in result.tables.items()}


def test_results_that_differ_are_not_equal() -> None:
    result = _small()
    tables = {**result.tables, "mixed": result.tables["mixed"].assign(n=[1, 3])}
    assert StudyResult(result.kind, result.meta, result.claims, result.circuits, tables) != result
    assert StudyResult(result.kind, {**result.meta, "seed": 4}, result.claims, result.circuits, result.tables) != result
    assert result != "a result"


def test_a_result_keeps_its_own_tables() -> None:
    table = pd.DataFrame({"a": [1.0]})
    result = StudyResult("k", tables={"t": table})
    table.loc[0, "a"] = 2.0
    copy = result.table("t")
    copy.loc[0, "a"] = 3.0
    assert result.tables["t"]["a"].tolist() == [1.0]


def test_the_folder_has_what_it_says(tmp_path: Path) -> None:
    result = synthetic_result(("topic",), optional=False)
    folder = result.save(tmp_path / "r")
    assert sorted(p.name for p in folder.iterdir()) == ["figures", "report.html", "results.json", "tables"]
    manifest = json.loads((folder / "results.json").read_text())
    assert manifest["schema_version"] == bundle.SCHEMA_VERSION
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del files["results.json"]
    sums = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    assert manifest["files"] == sums
    assert {f"tables/{name}.parquet" for name in manifest["tables"]} < set(files)
    names = figures.available(result)
    assert {p.name for p in (folder / "figures").iterdir()} == {f"{n}.{e}" for n in names for e in ("png", "svg")}
    assert (folder.stat().st_mode & 0o777) == (tmp_path.stat().st_mode | 0o055) & 0o777 & ~umask()


def test_results_json_is_strict(tmp_path: Path) -> None:
    """NaN is no JSON: other languages' readers stop at it."""
    text = (_small().save(tmp_path / "r", figures=False) / "results.json").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", ["a/b", "..", "", "a b", "claims", "é"])
def test_table_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="table name"):
        StudyResult("k", tables={name: pd.DataFrame()})


def test_an_unknown_table_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="no table 'nothing'; it has: claims, mixed, empty"):
        _small().table("nothing")
    assert list(_small().table()["statement"]) == ["all", "nothing", "text"]


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / "results.json").read_text())
        change(manifest)
        write_sealed(folder / "results.json", manifest)

    return edit


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit of a table": (lambda f: flip(f / "tables" / "mixed.parquet"), r"mixed\.parquet is damaged: its sha256"),
    "a table gone": (lambda f: (f / "tables" / "mixed.parquet").unlink(), r"mixed\.parquet is missing"),
    "one bit of the manifest": (lambda f: flip(f / "results.json"), r"results\.json is damaged"),
    "a figure of the manifest": (lambda f: _replace(f / "results.json", '"seed"', '"sead"'), r"damaged: its sha256"),
    "manifest cut": (lambda f: (f / "results.json").write_text('{"format": "moescope'), r"results\.json is damaged \(not JSON"),
    "manifest gone": (lambda f: (f / "results.json").unlink(), "not a moescope result, or its writing was cut short"),
    "manifest of bytes": (lambda f: (f / "results.json").write_bytes(b"\xff\xfe\x00"), r"results\.json is damaged"),
    "another's manifest": (lambda f: (f / "results.json").write_text('{"results": []}'), "is not from moescope"),
    "a list": (lambda f: (f / "results.json").write_text("[]"), "is not from moescope"),
    "newer": (_edit(lambda m: m.update(schema_version=99)), "schema version 99, this moescope reads up to 3; update moescope"),
    "older": (_edit(lambda m: m.update(schema_version=2)), "schema version 2, from before 3; run the study again"),
    "no version": (_edit(lambda m: m.pop("schema_version")), "schema version None"),
    "tables are a list": (_edit(lambda m: m.update(tables=[])), "'tables' is not a mapping"),
    "a path for a table": (_edit(lambda m: m["tables"].update({"../x": m["tables"]["mixed"]})), r"table '\.\./x'"),
    "claims lack a statement": (_edit(lambda m: m["claims"][0].pop("statement")), "is damaged .KeyError: 'statement'"),
    "an unknown outcome": (
        _edit(lambda m: m["claims"][0].update(outcome="totally made up")),
        "no verdict: outcome 'totally made up'",
    ),
    "claims are text": (_edit(lambda m: m.update(claims=["x"])), "is damaged"),
    "an unknown site": (_edit(lambda m: m["circuits"]["a"]["neurons"][0].update(site="soul")), "unknown site 'soul'"),
    "no kind": (_edit(lambda m: m.pop("kind")), "is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    folder = _small().save(tmp_path / "r", figures=False)
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(InputError, match=message) as caught:
        moescope.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        moescope.load(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no such folder"):
        moescope.load(tmp_path / "file")


def test_overwrite_is_asked_for_and_keeps_files_of_others(tmp_path: Path) -> None:
    folder = _small().save(tmp_path / "r", figures=False)
    (folder / "notes.txt").write_text(NOISE)
    (folder / "mine").mkdir()
    (folder / "mine" / "a").write_text(NOISE)
    (folder / "tables" / "old.parquet").write_text("of the old result")
    other = StudyResult("other", {"seed": 1})
    with pytest.raises(InputError, match="already holds a moescope result"):
        other.save(folder, figures=False)
    assert moescope.load(folder) == _small()
    other.save(folder, overwrite=True, figures=False)
    assert moescope.load(folder) == other
    assert (folder / "notes.txt").read_text() == (folder / "mine" / "a").read_text() == NOISE
    assert [p.name for p in (folder / "tables").iterdir()] == ["old.parquet"], "which no manifest of ours names"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]


def test_what_is_not_a_result_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text(NOISE)
    (tmp_path / "file").write_text(NOISE)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not empty and is not a moescope result"):
            _small().save(tmp_path / "theirs", overwrite=overwrite, figures=False)
        with pytest.raises(InputError, match="is a file"):
            _small().save(tmp_path / "file", overwrite=overwrite, figures=False)
        with pytest.raises(InputError, match="is a file"):
            _small().save(tmp_path / "file" / "below", overwrite=overwrite, figures=False)
    assert (tmp_path / "theirs" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == NOISE


def test_an_empty_folder_and_a_link_are_written_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    _small().save(tmp_path / "link", figures=False)
    assert (tmp_path / "link").is_symlink()
    assert moescope.load(tmp_path / "real") == _small()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("at", ["table", "figure", "manifest", "rename"])
def test_a_full_disk_leaves_what_was_there(at: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made" / "r"
    before = StudyResult("before")
    if overwrite:
        before.save(folder, figures=False)
        (folder / "notes.txt").write_text(NOISE)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if at == "table":
        monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    elif at == "figure":
        monkeypatch.setattr(Path, "write_bytes", full)
    elif at == "manifest":
        monkeypatch.setattr(atomic.os, "fsync", full)
    else:
        monkeypatch.setattr(folders.os, "rename", full)
        monkeypatch.setattr(folders, "exchange", full)
    result = StudyResult("circuits", tables={"layers": synthetic_result(optional=False).tables["layers"]})
    with pytest.raises(InputError, match=r"could not be written \(No space left on device\)"):
        result.save(folder, overwrite=overwrite, figures=at == "figure")
    monkeypatch.undo()
    if overwrite:
        assert moescope.load(folder) == before
        assert (folder / "notes.txt").read_text() == NOISE
        assert [p.name for p in folder.parent.iterdir()] == ["r"]
    else:
        assert list(tmp_path.iterdir()) == [], "not even the parents that were made for it"


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_parquet", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _small().save(tmp_path / "r", figures=False)
    assert list(tmp_path.iterdir()) == []


def test_targets_are_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.check_target(tmp_path / "new" / "folder", overwrite=False)
    assert list(tmp_path.iterdir()) == []
    folder = _small().save(tmp_path / "r", figures=False)
    store.check_target(folder, overwrite=True)
    with pytest.raises(InputError, match="already holds"):
        store.check_target(folder, overwrite=False)
    with pytest.raises(InputError, match=r"results\.json is a file"):
        store.check_target(folder / "results.json" / "x", overwrite=False)
    monkeypatch.setattr(folders.os, "access", lambda *_: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(InputError, match="no permission to write"):
        store.check_target(tmp_path / "new", overwrite=False)
    with pytest.raises(InputError, match="no permission to write"):
        store.check_target(folder, overwrite=True)


def test_peak_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    """On Linux the peak that getrusage gives a child begins with its parent's."""
    ballast = np.ones(2**26)
    say = "from moescope.study.provenance import peak_bytes; print(peak_bytes())"
    peak = int(subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, check=True).stdout)
    assert ballast.nbytes < psutil.Process().memory_info().rss
    assert peak > 2**20
    if sys.platform == "linux":
        assert peak < psutil.Process().memory_info().rss
