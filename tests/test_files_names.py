"""A file name that data gives is never a way out of its folder: nothing is read or deleted beside it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from moescope.capture.manifest import FORMAT, Manifest
from moescope.cli import main
from moescope.errors import InputError
from moescope.files.names import plain_name
from moescope.routing.store import TraceStore, load_trace, save_trace
from tests.seals import write_sealed
from tests.test_routing_trace_store import make

ESCAPES = ["../../victim.txt", "/etc/passwd", "..", "", "a/b", "a\\b", "C:x", ".hidden", "a\nb", None, 3, "x" * 999]


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "model-00001-of-00002.safetensors", "a.b_c", "x"])
def test_plain(name: str) -> None:
    assert plain_name(name) == name


@pytest.mark.parametrize("name", ESCAPES)
def test_not_plain(name: object) -> None:
    with pytest.raises(ValueError, match="not a plain file name"):
        plain_name(name)


def hostile(folder: Path, manifest: str, name: object) -> None:
    save_trace(make(), folder)
    data = json.loads((folder / "manifest.json").read_text())
    data["shards"][0]["file"] = name
    (folder / "manifest.json").rename(folder / manifest)
    write_sealed(folder / manifest, data)


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("manifest", ["manifest.json", "unfinished.json"])
def test_a_trace_cannot_name_another_file(tmp_path: Path, manifest: str, name: object) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    folder = tmp_path / "a" / "trace"
    hostile(folder, manifest, name)
    for attempt in (load_trace, TraceStore.resume, partial(save_trace, make(), overwrite=True)):
        with pytest.raises(InputError):
            attempt(folder)
    assert victim.read_text() == "mine"
    assert (folder / manifest).exists()


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
@pytest.mark.parametrize("manifest", ["manifest.json", "unfinished.json"])
def test_tracing_into_a_hostile_folder_deletes_nothing(
    tmp_path: Path, manifest: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    hostile(tmp_path / "moescope-out" / "trace-moe-tiny", manifest, "../../victim.txt")
    for place in ([], ["--out", "moescope-out/trace-moe-tiny"])[not options :]:  # else the default is another folder
        with pytest.raises(SystemExit) as exit_:
            main(["trace", "moe-tiny", "--new-tokens", "0", "--limit", "2", *place, *options])
        assert exit_.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()[-1]) > 0
    assert victim.read_text() == "mine"


def test_a_store_of_activations_cannot_either(tmp_path: Path) -> None:
    shard = {"file": "../victim.txt", "texts": 1, "vectors": 1, "size": 4, "sha256": ""}
    path = tmp_path / "manifest.json"
    about = {"model": "m", "revision": None, "fingerprint": "", "model_dtype": "float32", "sites": ["resid:1"], "widths": [4]}
    how = {"dtype": "float32", "position": "final", "skip_special": False, "special_tokens": "auto", "max_tokens": None}
    write_sealed(path, {**about, **how, "texts_sha256": "", "format": FORMAT, "shards": [shard]})
    with pytest.raises(InputError, match=r"damaged manifest .*not a plain file name"):
        Manifest.read(path)
    assert np.size(list(tmp_path.iterdir())) == 1
