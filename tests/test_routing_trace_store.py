"""The trace as a value and on disk: selection, counts, shards, resuming, damage, Parquet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moescope.routing.store as store_module
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.routing import RoutingTrace, TracedSequence, trace_prompts
from moescope.routing.export import export_parquet
from moescope.routing.store import TraceStore, load_trace, save_trace, trace_to_store
from moescope.routing.trace import id_dtype
from tests.architectures import tiny_model

ARRAYS = ("ids", "weights", "sequence", "position", "generated", "tokens", "scores")


def make(n: int = 6, layers: tuple[int, ...] = (1, 2, 5), experts: int = 8, k: int = 2, seed: int = 0) -> RoutingTrace:
    """A trace of ``n`` sequences of 3 to 8 tokens; one slot is empty."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 9, n)
    total = int(lengths.sum())
    ids = np.argsort(rng.random((total, len(layers), experts)), -1)[..., :k].astype(id_dtype(experts))
    weights = rng.random((total, len(layers), k)).astype(np.float16)
    ids[1, 0, k - 1], weights[1, 0, k - 1] = np.iinfo(ids.dtype).max, 0
    position = np.concatenate([np.arange(m, dtype=np.int32) for m in lengths])
    return RoutingTrace(
        layers=layers,
        n_experts=(experts,) * len(layers),
        ids=ids,
        weights=weights,
        sequence=np.repeat(np.arange(n, dtype=np.int32), lengths),
        position=position,
        generated=position >= 3,
        tokens=rng.integers(0, 99, total).astype(np.int32),
        sequences=tuple(TracedSequence(f"s{i}", f"c{i % 2}", None) for i in range(n)),
        meta={"model": "m", "fingerprint": "f" * 16},
    ).validate()


def same(a: RoutingTrace, b: RoutingTrace) -> bool:
    def equal(x: Any, y: Any) -> bool:
        return (x is None and y is None) or (x.dtype == y.dtype and np.array_equal(x, y))

    facts = ("layers", "n_experts", "sequences", "meta")
    return all(getattr(a, f) == getattr(b, f) for f in facts) and all(equal(getattr(a, n), getattr(b, n)) for n in ARRAYS)


@pytest.mark.parametrize(
    ("experts", "dtype"), [(8, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.uint32)]
)
def test_ids_take_the_smallest_type_that_leaves_a_value_for_none(experts: int, dtype: Any) -> None:
    assert id_dtype(experts) == dtype


def test_counts_by_hand() -> None:
    trace = make()
    counts, mass = trace.counts(), trace.counts(weighted=True, part="generated")
    for s in range(6):
        for index in range(3):
            for e in range(8):
                here = (trace.sequence == s)[:, None] & (trace.ids[:, index] == e)
                assert counts[s, index, e] == here.sum()
                late = here & trace.generated[:, None]
                assert mass[s, index, e] == pytest.approx(float(trace.weights[:, index][late].astype(float).sum()))
    assert counts.sum() == trace.ids.size - 1  # the empty slot is nobody's


def test_selecting() -> None:
    trace = make()
    some = trace.select(["s4", "s1"], part="prompt", layers=[5])
    assert [s.id for s in some.sequences] == ["s4", "s1"]
    assert some.layers == (5,)
    assert some.lengths.tolist() == [3, 3]
    np.testing.assert_array_equal(some.ids[:3, 0], trace.ids[trace.sequence == 4][:3, 2])
    np.testing.assert_array_equal(some.counts(), trace.counts(part="prompt")[[4, 1]][:, [2]])
    assert same(RoutingTrace.concat([trace.select(range(2)), trace.select(range(2, 6))]), trace)
    for wrong in ({"sequences": ["nobody"]}, {"sequences": [6]}, {"layers": [0]}, {"part": "first"}):
        with pytest.raises(InputError):
            trace.select(**wrong)  # type: ignore[arg-type]


def test_joining_needs_one_model() -> None:
    trace = make()
    for change in ({"n_experts": (9, 9, 9)}, {"layers": (0, 2, 5)}, {"meta": {"fingerprint": "other"}}):
        with pytest.raises(InputError, match="of another model"):
            RoutingTrace.concat([trace, replace(trace, **change)])  # type: ignore[arg-type]
    wider = RoutingTrace.concat([trace, make(k=3)])
    assert wider.top_k == 3
    np.testing.assert_array_equal(wider.counts()[:6], trace.counts())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: {"ids": _with(t.ids, (4, 1, 0), 8)},
            r"row 4, layer 2: expert id 8 is out of range, the layer has experts 0-7",
        ),
        (lambda t: {"layers": (1, 2)}, "3 layers, but 2 layer numbers"),
        (lambda t: {"layers": (2, 1, 5)}, "must rise"),
        (lambda t: {"weights": t.weights[:-1]}, "weights is float16 of shape"),
        (lambda t: {"sequence": t.sequence[::-1]}, "must rise"),
        (lambda t: {"ids": t.ids.astype(np.int64)}, "unsigned"),
    ],
)
def test_a_wrong_trace_is_named(change: Any, message: str) -> None:
    trace = make()
    with pytest.raises(InputError, match=message):
        replace(trace, **change(trace)).validate()


def _with(array: np.ndarray, at: tuple[int, ...], value: int) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


@pytest.mark.parametrize("shard_tokens", [7, 1 << 20])
def test_stored_and_read_back(tmp_path: Path, shard_tokens: int) -> None:
    for name, trace in {"full": make(), "bare": replace(make(experts=300), weights=None, tokens=None)}.items():
        save_trace(trace, tmp_path / name, shard_tokens=shard_tokens)
        assert same(load_trace(tmp_path / name), trace)
    shards = len(list((tmp_path / "full").glob("shard-*.safetensors")))
    assert shards == 1 if shard_tokens > 100 else shards > 3
    with pytest.raises(InputError, match="there already"):
        save_trace(make(), tmp_path / "full")


def test_appending_and_refusing_what_does_not_fit(tmp_path: Path) -> None:
    first, second = make(seed=1), make(seed=2)
    save_trace(first, tmp_path / "t")
    with TraceStore.resume(tmp_path / "t") as store:
        with pytest.raises(InputError, match="unfinished"):
            load_trace(tmp_path / "t")
        store.append(second)
        with pytest.raises(InputError, match="of another model"):
            store.append(make(experts=9))
        with pytest.raises(InputError, match="holds ids, weights"):
            store.append(replace(second, tokens=None))
    assert same(load_trace(tmp_path / "t"), RoutingTrace.concat([first, second]))


def test_damage_is_named(tmp_path: Path) -> None:
    save_trace(make(), tmp_path / "t", shard_tokens=7)
    shard = tmp_path / "t" / "shard-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    with pytest.raises(InputError, match=r"shard-00001.safetensors: shard is truncated"):
        load_trace(tmp_path / "t")
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="checksum differs"):
        load_trace(tmp_path / "t")
    shard.unlink()
    with pytest.raises(InputError, match="is missing"):
        load_trace(tmp_path / "t")
    manifest = tmp_path / "t" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("moescope-routing-2", "moescope-routing-9"))
    with pytest.raises(InputError, match="'moescope-routing-9' is not moescope-routing-2"):
        load_trace(tmp_path / "t")
    manifest.write_text("{")
    with pytest.raises(InputError, match="damaged manifest"):
        load_trace(tmp_path / "t")
    with pytest.raises(InputError, match="not a routing trace"):
        load_trace(tmp_path / "nothing")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model("olmoe", head=True)


def prompts(n: int = 7) -> list[SimpleNamespace]:
    return [SimpleNamespace(id=f"p{i}", text="word " * (i + 1), category="c", group=None) for i in range(n)]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "t"
    options: dict[str, Any] = {"shard_prompts": 2, "max_new_tokens": 2}
    calls: list[int] = []

    def dying(model: LoadedModel, part: Any, **kwargs: Any) -> RoutingTrace:
        calls.append(len(part))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return trace_prompts(model, part, **kwargs)

    monkeypatch.setattr(store_module, "trace_prompts", dying)
    with pytest.raises(KeyboardInterrupt):
        trace_to_store(model, prompts(), folder, **options)
    (folder / "shard-00002.safetensors").write_bytes(b"cut short")  # as a kill in the middle of a write would leave
    with pytest.raises(InputError, match="unfinished"):
        load_trace(folder)
    with pytest.raises(InputError, match="other options"):
        trace_to_store(model, prompts(), folder, shard_prompts=2, max_new_tokens=3)
    other = prompts()
    other[0].text = "something else"
    with pytest.raises(InputError, match="other prompts"):
        trace_to_store(model, other, folder, **options)
    with pytest.raises(InputError, match="another model"):
        trace_to_store(tiny_model("olmoe", head=True, seed=1), prompts(), folder, **options)
    calls[:] = [0] * 9
    trace_to_store(model, prompts(), folder, **options)
    assert len(calls) == 11  # two of four shards were there
    assert same(load_trace(folder), trace_prompts(model, prompts(), max_new_tokens=2))
    with pytest.raises(InputError, match="there already"):
        trace_to_store(model, prompts(), folder, **options)


def test_parquet_holds_every_choice(tmp_path: Path) -> None:
    trace = make()
    rows = export_parquet(trace, tmp_path / "t.parquet")
    table = pd.read_parquet(tmp_path / "t.parquet")
    assert len(table) == rows == trace.ids.size - 1
    assert set(table["layer"]) == {1, 2, 5}
    again = np.zeros((6, 3, 8))
    at = (table["sequence"].str.slice(1).astype(int), table["layer"].map({1: 0, 2: 1, 5: 2}), table["expert"])
    np.add.at(again, at, table["weight"])
    np.testing.assert_allclose(again, trace.counts(weighted=True), rtol=1e-5)
    assert "token" not in pd.read_parquet(_bare(tmp_path)).columns
    with pytest.raises(InputError, match="cannot write"):
        export_parquet(trace, "/proc/none/t.parquet")


def _bare(tmp_path: Path) -> Path:
    export_parquet(replace(make(), tokens=None, weights=None), tmp_path / "bare.parquet")
    return tmp_path / "bare.parquet"
