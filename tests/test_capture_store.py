"""The store of activations: what comes back is what went in, and a kill, a full disk or damage is never read as whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moescope.capture import ActivationStore, Encoded, activations, capture
from moescope.capture.manifest import FORMAT
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.types import Site
from tests.architectures import tiny_model
from tests.seals import write_sealed

SITES = [Site("resid", 1), Site("mlp_act", 2)]
TEXTS = [f"text number {n} " + "and so on " * (n % 4) for n in range(11)]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model("llama")


def collect(folder: Path, model: LoadedModel, texts: Any = TEXTS, sites: Any = SITES, **options: Any) -> ActivationStore:
    settings: dict[str, Any] = {"dtype": "float32", "shard_texts": 3, "batch_tokens": 100}
    return ActivationStore.collect(folder, model, texts, sites, **(settings | options))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what comes back -----------------------------------------------------------------------------------------------------


def test_every_token_comes_back(model: LoadedModel, tmp_path: Path) -> None:
    store = collect(tmp_path / "s", model)
    assert names(tmp_path / "s") == ["manifest.json", *(f"shard-0000{n}.safetensors" for n in range(4))]
    assert len(store) == len(TEXTS)
    with capture(model, SITES) as session:
        for row, text in enumerate(TEXTS):
            ids = torch.tensor(model.tokenizer(text)["input_ids"])[None]
            seen = session.run(ids)
            for site in SITES:
                expected = seen[site][0, 1:]  # without <bos>
                got = store.read(site, row)
                assert len(got) == 1
                assert got[0].shape == expected.shape
                assert np.abs(got[0] - expected.numpy()).max() <= 1e-5


@pytest.mark.parametrize("position", ["final", "mean", 2])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_vector_per_text(model: LoadedModel, tmp_path: Path, position: Any, dtype: str) -> None:
    store = collect(tmp_path / "s", model, position=position, dtype=dtype)
    for site in SITES:
        expected = activations(model, TEXTS, [site], position=position)[:, 0]
        got = store.read(site)
        rounding = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
        assert got.values.dtype == np.float32
        assert np.abs(got.values - expected).max() <= rounding * np.abs(expected).max()
        assert got.offsets.tolist() == list(range(len(TEXTS) + 1))


@pytest.mark.parametrize("rows", [slice(2, 7), slice(None), slice(-3, None), slice(5, 5), 4, -1])
def test_rows_across_shards(model: LoadedModel, tmp_path: Path, rows: Any) -> None:
    store = collect(tmp_path / "s", model)
    chosen = [TEXTS[rows]] if isinstance(rows, int) else TEXTS[rows]
    got = store.read(SITES[0], rows)
    assert len(got) == len(chosen)
    assert [len(got[i]) for i in range(len(got))] == [len(text) for text in chosen]
    assert sum(len(got[i]) for i in range(len(got))) == len(got.values)


def test_appending_to_a_finished_store(model: LoadedModel, tmp_path: Path) -> None:
    whole = collect(tmp_path / "whole", model)
    with ActivationStore.create(tmp_path / "parts", model, SITES, dtype="float32") as store:
        store.append(TEXTS[:6], shard_texts=3, batch_tokens=100)
    with ActivationStore.resume(tmp_path / "parts", model) as store:
        assert len(store) == 6
        store.append(TEXTS[6:], shard_texts=3, batch_tokens=100)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert len(ActivationStore.open(tmp_path / "parts")) == len(whole)


def test_collecting_again_only_opens(model: LoadedModel, tmp_path: Path) -> None:
    collect(tmp_path / "s", model)
    before = contents(tmp_path / "s")
    seen: list[int] = []
    collect(tmp_path / "s", model, progress=lambda done, _: seen.append(done))
    assert not seen
    assert contents(tmp_path / "s") == before
    collect(tmp_path / "s", model, [*TEXTS, "one more"], progress=lambda done, _: seen.append(done))
    assert seen == [len(TEXTS) + 1]


def test_token_ids_instead_of_texts(model: LoadedModel, tmp_path: Path) -> None:
    encoded = Encoded.from_ids([[1, 2, 3], [4], [5, 6]])
    store = collect(tmp_path / "s", model, encoded, [SITES[0]], shard_texts=2)
    assert store.read().offsets.tolist() == [0, 3, 4, 6]  # the one site need not be named


# --- kill ----------------------------------------------------------------------------------------------------------------

CHILD = """
import sys, time
from moescope.capture import ActivationStore
from tests.architectures import tiny_model
from tests.test_capture_store import SITES, TEXTS, collect
collect(__import__("pathlib").Path(sys.argv[1]), tiny_model("llama"), batch_tokens=1, progress=lambda *_: time.sleep(0.05))
"""


def test_a_killed_run_resumes_to_the_same_store(model: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], cwd=root, env=environment)
    unfinished = folder / "unfinished.json"
    while child.poll() is None and not (unfinished.exists() and len(json.loads(unfinished.read_text())["shards"]) >= 2):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL  # it was still at work
    (folder / ".shard-00003.safetensors.1.tmp").write_bytes(b"half a shard")  # as a kill during a write leaves it
    assert "manifest.json" not in names(folder)
    with pytest.raises(InputError, match=r"the store is unfinished \(no manifest\.json\); resume it") as error:
        ActivationStore.open(folder)
    one_line(error)
    with pytest.raises(InputError, match="an unfinished store is there already; resume it"):
        ActivationStore.create(folder, model, SITES)

    seen: list[int] = []
    resumed = collect(folder, model, batch_tokens=1, progress=lambda done, _: seen.append(done))
    assert seen[0] > 6  # two shards were kept
    collect(tmp_path / "whole", model, batch_tokens=1)
    assert contents(folder) == contents(tmp_path / "whole")
    assert len(resumed) == len(TEXTS)


# --- damage --------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 0xFF
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 8)


def spoil_header(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, r"corrupt shard \(its checksum differs\)"),
        (truncate, r"shard is truncated \(\d+ of \d+ bytes\)"),
        (lengthen, "shard is too long"),
        (spoil_header, "damaged shard"),
        (Path.unlink, "shard is missing"),
    ],
)
def test_a_damaged_shard_is_named(model: LoadedModel, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    collect(tmp_path / "s", model)
    damage(tmp_path / "s" / "shard-00002.safetensors")
    with pytest.raises(InputError, match=rf"shard-00002\.safetensors: {message}.*; .*collect") as error:
        ActivationStore.open(tmp_path / "s").read(SITES[0])
    one_line(error)


def test_only_what_is_read_is_verified(model: LoadedModel, tmp_path: Path) -> None:
    store = collect(tmp_path / "s", model)
    expected = store.read(SITES[0], slice(0, 6)).values
    flip(tmp_path / "s" / "shard-00002.safetensors")
    store = ActivationStore.open(tmp_path / "s")
    assert np.array_equal(store.read(SITES[0], slice(0, 6)).values, expected)
    ActivationStore.open(tmp_path / "s", verify=False).read(SITES[0])


def test_a_shard_of_another_store(model: LoadedModel, tmp_path: Path) -> None:
    collect(tmp_path / "a", model)
    collect(tmp_path / "b", tiny_model("llama", seed=1))
    name = "shard-00001.safetensors"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(InputError, match="shard belongs to another model or store") as error:
        ActivationStore.open(tmp_path / "a")
    one_line(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "damaged manifest"),
        (b"[]", "damaged manifest"),
        (b'{"format": "other"}', "not a store of format"),
        ({"format": FORMAT}, "damaged manifest"),
        ({"format": FORMAT, "shards": [], "more": 1}, r"damaged manifest \(unknown entry more\)"),
        (b'{"format": "moescope-activations-2", "shards": [], "more": 1}', r"damaged manifest \(its sha256"),
    ],
)
def test_a_damaged_manifest(model: LoadedModel, tmp_path: Path, content: bytes | dict[str, Any], message: str) -> None:
    collect(tmp_path / "s", model)
    path = tmp_path / "s" / "manifest.json"
    path.write_bytes(content) if isinstance(content, bytes) else write_sealed(path, content)
    with pytest.raises(InputError, match=rf"manifest\.json: (format 'other' is not [^:]*: )?{message}") as error:
        ActivationStore.open(tmp_path / "s")
    one_line(error)


# --- another store than was meant ----------------------------------------------------------------------------------------


def test_a_store_of_another_model(model: LoadedModel, tmp_path: Path) -> None:
    collect(tmp_path / "s", model)
    other = tiny_model("llama", seed=1)
    for act in (ActivationStore.open, ActivationStore.resume, collect):
        with pytest.raises(InputError, match=r"holds activations of another model \(tiny-llama in torch\.float32") as error:
            act(tmp_path / "s", other)
        one_line(error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": SITES[:1]}, "made with sites"),
        ({"position": "final"}, "made with position = all, not final"),
        ({"dtype": "float16"}, "made with dtype = float32, not float16"),
        ({"skip_special": False}, "made with skip_special = True, not False"),
        ({"special_tokens": "none"}, "made with special_tokens = default, not none"),
        ({"max_tokens": 5}, "made with max_tokens = None, not 5"),
        ({"texts": ["other", *TEXTS[1:]]}, "made from other texts"),
        ({"texts": TEXTS[:5]}, "holds more than these 5 texts"),
    ],
)
def test_other_settings(model: LoadedModel, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    collect(tmp_path / "s", model)
    before = contents(tmp_path / "s")
    with pytest.raises(InputError, match=message) as error:
        collect(tmp_path / "s", model, **options)
    one_line(error)
    assert contents(tmp_path / "s") == before


def test_misuse(model: LoadedModel, tmp_path: Path) -> None:
    store = collect(tmp_path / "s", model)
    for call, message in (
        (lambda: store.read(Site("resid", 0)), "site resid:0 is not in the store; it has resid:1, mlp_act:2"),
        (lambda: store.read(), "site None is not in the store"),
        (lambda: store.read(SITES[0], 11), "rows: 11 is not in the store, which holds 11 texts"),
        (lambda: store.read(SITES[0], slice(0, 4, 2)), "rows: step 2"),
        (lambda: store.append(["x"]), r"open for reading; use resume\(\)"),
        (lambda: store.finish(), r"open for reading; use resume\(\)"),
        (lambda: ActivationStore.resume(tmp_path / "s", model).read(SITES[0]), "the store is being written"),
        (lambda: ActivationStore.create(tmp_path / "s", model, SITES), "a store is there already"),
        (lambda: ActivationStore.open(tmp_path / "gone"), "no store of activations there"),
        (lambda: ActivationStore.resume(tmp_path / "gone", model), "no store of activations there; create one"),
        (lambda: collect(tmp_path / "t", model, dtype="int8"), 'dtype: "int8" is not one of'),
        (lambda: collect(tmp_path / "t", model, sites=[]), "sites: none were given"),
        (lambda: ActivationStore.resume(tmp_path / "s", model).append(["x"], shard_texts=0), "shard_texts: 0"),
    ):
        with pytest.raises(InputError, match=message) as error:
            call()  # type: ignore[no-untyped-call]
        one_line(error)
    assert not (tmp_path / "t").exists()


def test_shards_without_a_manifest(model: LoadedModel, tmp_path: Path) -> None:
    collect(tmp_path / "s", model)
    (tmp_path / "s" / "manifest.json").unlink()
    before = contents(tmp_path / "s")
    for act in (collect, ActivationStore.create):
        with pytest.raises(InputError, match="shards without a manifest are there already"):
            act(tmp_path / "s", model, sites=SITES)
    assert contents(tmp_path / "s") == before
