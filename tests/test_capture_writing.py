"""A file is written whole or not at all: full disks, folders that cannot be written to, errors half way."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moescope.capture import ActivationStore, Moments, moments
from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.models import LoadedModel
from moescope.types import Site
from tests.architectures import tiny_model
from tests.test_capture_store import TEXTS, collect, contents, names, one_line

RESID = [Site("resid", 0), Site("resid", 2)]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model("llama")


class FullDisk:
    """Lets ``room`` flushes of a file through; then there is no space left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, code: int = errno.ENOSPC) -> None:
        self.room, self.code = room, code
        self.really = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):  # names, not contents
            return self.really(descriptor)
        self.room -= 1
        if self.room < 0:
            raise OSError(self.code, os.strerror(self.code))
        self.really(descriptor)


@pytest.mark.parametrize(("room", "shards"), [(0, None), (1, 0), (2, 1), (4, 2), (5, 2), (9, 4)])
def test_a_store_on_a_full_disk(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, shards: int | None
) -> None:
    """Flushes in order: the empty manifest, then each shard and the manifest that counts it, then the final one."""
    folder = tmp_path / "s"
    with monkeypatch.context() as patch:
        FullDisk(patch, room)
        with pytest.raises(InputError, match=r"^cannot write [^:]*: the disk is full; free some space") as error:
            collect(folder, model)
        one_line(error)
    assert not [name for name in names(folder) if name.endswith(".tmp")]
    assert "manifest.json" not in names(folder)
    assert len([name for name in names(folder) if name.startswith("shard")]) == (shards or 0)
    collect(folder, model)  # space was made
    collect(tmp_path / "whole", model)
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("code", "mend"),
    [(errno.EDQUOT, "quota is used up"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied"), (errno.EIO, ".")],
)
def test_other_failures_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, mend: str) -> None:
    file = tmp_path / "file"
    write_atomic(file, [b"old"])
    FullDisk(monkeypatch, 0, code)
    with pytest.raises(InputError, match=f"cannot write {file}: .*{mend}"):
        write_atomic(file, [b"new ", b"content"])
    assert contents(tmp_path) == {"file": b"old"}


def test_a_folder_that_is_a_file(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(InputError, match="cannot write "):
            collect(folder, model)


def test_a_checkpoint_on_a_full_disk(model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"batch_tokens": 40, "checkpoint": tmp_path / "c", "checkpoint_every": 1}
    labels = [0] * len(TEXTS)
    with monkeypatch.context() as patch:
        FullDisk(patch, 3)
        with pytest.raises(InputError, match="the disk is full") as error:
            moments(model, TEXTS, RESID, labels, **options)
        one_line(error)
    assert names(tmp_path) == ["c"]  # the last whole checkpoint
    seen: list[int] = []
    resumed = moments(model, TEXTS, RESID, labels, progress=lambda done, _: seen.append(done), **options)
    assert seen[0] >= 3
    assert np.array_equal(resumed.m2, moments(model, TEXTS, RESID, labels, batch_tokens=40).m2)


def test_an_error_half_way_leaves_no_file(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.body.get_input_embeddings().weight[model.tokenizer("9")["input_ids"][-1]] = float("nan")  # type: ignore[operator]
    with pytest.raises(InputError, match="site resid:1, text 9: an activation is not finite"):
        collect(tmp_path / "s", model)
    assert names(tmp_path / "s") == [*(f"shard-0000{n}.safetensors" for n in range(3)), "unfinished.json"]
    with pytest.raises(InputError, match="the store is unfinished"):
        ActivationStore.open(tmp_path / "s")
    with pytest.raises(InputError, match="text 9: an activation is not finite"):
        moments(model, TEXTS, RESID, [0] * len(TEXTS), checkpoint=tmp_path / "m")
    with pytest.raises(InputError):
        Moments.load(tmp_path / "m")
