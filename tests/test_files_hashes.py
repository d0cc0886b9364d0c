"""A large file is hashed once for each of its states."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from moescope.files.hashes import sha256_of
from tests.seals import flip


def test_hashed_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 24))
    true = hashlib.sha256(bytes(1 << 24)).hexdigest()
    assert sha256_of(file) == true
    assert not (tmp_path / "cache").exists()  # another change might still leave its time as it is
    time.sleep(2.1)
    assert sha256_of(file) == true

    def read(*_: object) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", read)
        assert sha256_of(file) == true
    times = file.stat()
    flip(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a tool that restores times leaves it
    assert sha256_of(file) == hashlib.sha256(file.read_bytes()).hexdigest() != true
    flip(tmp_path / "cache" / "hashes.json", at=0.9)
    assert sha256_of(file) == hashlib.sha256(file.read_bytes()).hexdigest()
