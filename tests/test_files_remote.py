"""Results, traces, stores, texts and tasks in object stores: whole there or unreadable."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest

import moescope
from moescope.capture.store import ActivationStore
from moescope.cli import main
from moescope.errors import InputError
from moescope.files.remote import _store, local
from moescope.routing.store import load_trace, save_trace
from moescope.study.result import StudyResult
from moescope.tasks import load_task
from moescope.types import Claim, Site
from tests.google_store import Google
from tests.hub_store import Hub
from tests.object_store import Store, object_store
from tests.planted_llama import planted_llama
from tests.test_routing_trace_store import make, same


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with object_store() as made:
        yield made


@pytest.fixture(scope="module")
def google() -> Iterator[Store]:
    with object_store(Google) as made:
        yield made


@pytest.fixture(scope="module")
def hub() -> Iterator[Store]:
    with object_store(Hub) as made:
        yield made


@pytest.fixture(autouse=True)
def _here(store: Store, google: Store, hub: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = f"http://127.0.0.1:{google.server_port}"
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", at)
    user = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r", "token_uri": f"{at}/token"}
    (tmp_path / "key.json").write_text(json.dumps(user))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    hub_at = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub_at)  # which reads HF_ENDPOINT once
    urls = hub_at + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", urls)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    google.objects.clear()
    hub.objects.clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "cache"))
    store.objects.clear()
    store.written.clear()
    store.denied = None
    fsspec.filesystem("memory").store.clear()


PLACES = [
    "memory://bucket/deep/place",
    "s3://bucket/deep/place",
    "gs://bucket/deep/place",
    "hf://datasets/me/results/deep/place",
]
places = pytest.mark.parametrize("place", PLACES)


def result(value: float = 0.5) -> StudyResult:
    table = pd.DataFrame({"layer": [0, 1], "value": [value, 1.0]})
    return StudyResult(
        "trace", {"title": "t"}, (Claim("a claim", measured=value, outcome="reproduced"),), tables={"one": table}
    )


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has never read the address."""
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "other"))


@places
def test_a_result_is_read_elsewhere_as_it_was_saved(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result().save(place)
    elsewhere(tmp_path, monkeypatch)
    assert moescope.load(place) == result()
    assert moescope.load(Path(place)) == result()  # a path keeps one of the slashes
    with pytest.raises(InputError, match="already holds a moescope result"):
        result(0.7).save(place)
    result(0.7).save(place, overwrite=True, figures=False)
    assert moescope.load(place) == result(0.7)
    assert not (local(place) / "report.html").exists()
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "cache"))  # which has a copy of the first
    assert moescope.load(place) == result(0.7)


def test_the_manifest_is_sent_last_and_foreign_files_stay(store: Store) -> None:
    result().save("s3://bucket/r", figures=False)
    assert store.written[-1] == "bucket/r/results.json"
    store.put("bucket/r/notes.txt", b"mine")
    store.put("bucket/r/of mine/a b.txt", b"mine")
    result(0.6).save("s3://bucket/r", overwrite=True, figures=False)
    assert store.objects["bucket/r/notes.txt"] == store.objects["bucket/r/of mine/a b.txt"] == b"mine"
    assert moescope.load("s3://bucket/r") == result(0.6)


@pytest.mark.parametrize("denied", ["one.parquet$", "results.json$"])
def test_what_could_not_be_sent_is_not_readable_and_not_lost(
    store: Store, denied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.denied = denied
    with pytest.raises(InputError, match=r"s3://bucket/r could not be written \(.*\); the whole of it stands in ") as caught:
        result().save("s3://bucket/r", figures=False)
    assert "\n" not in str(caught.value)
    kept = Path(re.search(r"stands in (.*)$", str(caught.value))[1])  # type: ignore[index]
    assert moescope.load(kept) == result()
    assert "bucket/r/results.json" not in store.objects
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"no such folder|not a moescope result"):
        moescope.load("s3://bucket/r")
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "cache"))
    store.denied = None
    assert moescope.load("s3://bucket/r") == result()  # it is sent first
    assert "bucket/r/results.json" in store.objects


def test_what_is_damaged_there_is_refused_here(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result().save("s3://bucket/r", figures=False)
    elsewhere(tmp_path, monkeypatch)
    name = "bucket/r/tables/one.parquet"
    store.put(name, store.objects[name][:-1] + b"x")
    with pytest.raises(InputError, match="is damaged: its sha256"):
        moescope.load("s3://bucket/r")


@places
def test_traces_and_stores(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, model, texts = make(), planted_llama(), ["w1 w2 w3", "w4 w5"]
    save_trace(trace, place)
    here = ActivationStore.collect(tmp_path / "store", model, texts, [Site("resid", 1)], dtype="float32")
    ActivationStore.collect(f"{place}/store", model, texts, [Site("resid", 1)], dtype="float32")
    elsewhere(tmp_path, monkeypatch)
    assert same(load_trace(place), trace)
    there = ActivationStore.open(f"{place}/store", model)
    assert np.array_equal(there.read().values, here.read().values)


@places
def test_tasks_and_traces_through_the_command_line(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "\n".join(json.dumps({"text": f"word{i} here", "label": i % 2}) for i in range(40))
    other, name = place.rsplit("/", 1)[0] + "/mine.jsonl", place
    _store(other)[0].pipe_file(_store(other)[1], rows.encode())
    assert len(load_task(f"mine={other}?text=text&label=label")) == 40
    save_trace(make(experts=4), name)
    main(["trace", "--read", name, "--json"])
    assert json.loads(capsys.readouterr().out)["sequences"] == 6
    with pytest.raises(SystemExit):
        main(["trace", "--read", name, "--parquet", f"{place}.parquet"])
    assert f"{place}.parquet: an address is not taken here; name a file of this machine" in capsys.readouterr().err
    result().save(f"{place}2", figures=False)
    main(["show", f"{place}2", "--table", "one"])
    assert "layer" in capsys.readouterr().out


def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="s3://bucket/model: an address is not taken here; copy the model"):
        moescope.load_model("s3://bucket/model")
    for wrong in ("s3://bucket/none", "memory://none/none", "gs://bucket/none", "hf://datasets/me/results/none"):
        with pytest.raises(InputError, match=f"{wrong}: no such folder"):
            moescope.load(wrong)
    with pytest.raises(InputError, match=r"s3://bucket/none\.jsonl: no such file"):
        load_task("t=s3://bucket/none.jsonl")


def test_a_store_whose_reader_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "hf", raising=False)
    with pytest.raises(InputError, match=r"^hf://datasets/me/r: hf:// cannot be read here \(.*huggingface_hub"):
        moescope.load("hf://datasets/me/r")
    monkeypatch.delattr("pyarrow.fs.GcsFileSystem")  # as in a build of pyarrow without it
    with pytest.raises(InputError, match=r"^gs://bucket/r: gs:// cannot be read here; pip install gcsfs$"):
        moescope.load("gs://bucket/r")
