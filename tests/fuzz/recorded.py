"""Readers of routing: stored traces, and what engines record."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from moescope.capture.manifest import FINISHED, UNFINISHED
from moescope.routing.engines import EngineModel, import_routing, import_sglang, import_vllm
from moescope.routing.export import export_parquet
from moescope.routing.load import RoutingLoad, load_load
from moescope.routing.store import TraceStore, load_trace, save_trace
from tests.fuzz.registry import register
from tests.planted_routing import random_trace

ENGINE = EngineModel(8)


def _trace() -> Any:
    return random_trace()


def _make_trace(folder: Path) -> None:
    save_trace(_trace(), folder / "trace", shard_tokens=40)


def _read_trace(folder: Path) -> None:
    trace = load_trace(folder / "trace")
    trace.counts()
    trace.select(range(len(trace.sequences)))
    export_parquet(trace, folder / "out.parquet")
    _use(trace)


def _make_unfinished(folder: Path) -> None:
    _make_trace(folder)
    (folder / "trace" / FINISHED).rename(folder / "trace" / UNFINISHED)


register("trace", _make_trace, _read_trace)
register("unfinished trace", _make_unfinished, lambda f: TraceStore.resume(f / "trace").append(_trace()))


def _routed(tokens: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permuted(np.tile(np.arange(8), (3, 1)), axis=1)[:, :2] for _ in range(tokens)]).astype(np.int32)


def _npy(array: np.ndarray) -> str:
    out = io.BytesIO()
    np.save(out, array)
    return base64.b64encode(out.getvalue()).decode()


def _use(trace: Any) -> None:
    trace.validate()
    trace.counts()
    assert (trace.position >= 0).all()
    for name in ("weights", "scores"):
        assert getattr(trace, name) is None or np.isfinite(getattr(trace, name)).all()
    for sequence in trace.sequences:
        assert isinstance(sequence.id, str)
        assert all(isinstance(text, str | None) for text in (sequence.category, sequence.group))


def _responses(folder: Path) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 3}
    rows = [
        {"id": "a", "choices": [{"routed_experts": _npy(_routed(5))}], "usage": usage},
        {"id": "b", "routed_experts": _routed(4).tolist(), "prompt_tokens": 2, "category": "code", "group": "x/y"},
    ]
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))


register(
    "vLLM npz", lambda f: np.savez(f / "in.npz", a=_routed(5), b=_routed(4)), lambda f: _use(import_vllm(f / "in.npz", ENGINE))
)
register("vLLM npy", lambda f: np.save(f / "in.npy", _routed(5)), lambda f: _use(import_vllm(f / "in.npy", ENGINE)))
register("vLLM responses", _responses, lambda f: _use(import_vllm(f / "in.jsonl", ENGINE)))


def _make_vllm_safetensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": _routed(5), "b": _routed(4)}, folder / "in.safetensors")


register("vLLM safetensors", _make_vllm_safetensors, lambda f: _use(import_vllm(f / "in.safetensors", ENGINE)))


def _make_sglang(folder: Path) -> None:
    ids = np.full((3, 8, 4), -1, np.int32)
    ids[..., :2] = _routed(8).transpose(1, 0, 2)
    np.savez(
        folder / "in.npz",
        topk_ids_of_layer=ids,
        input_ids=np.full(8, 9),
        positions=np.array([0, 1, 2, 3, 4, 0, 1, 2]),
        forward_mode=np.array([1, 1, 1, 2, 2, 1, 1, 2]),
        physical_to_logical_map=np.arange(7, -1, -1)[None].repeat(3, 0),
    )


register("SGLang npz", _make_sglang, lambda f: _use(import_sglang(f / "in.npz", ENGINE)))


def _counts(found: Any) -> None:
    if not isinstance(found, RoutingLoad):  # an array may get the name that choices have
        return _use(found)
    assert (found.counts >= 0).all()
    found.table()


register(
    "SGLang counts",
    lambda f: np.savez(f / "in.npz", logical_count=np.ones((4, 3, 8), np.int32)),
    lambda f: _counts(import_routing(f / "in.npz", ENGINE)),
)


def _make_passes(folder: Path) -> None:
    table = np.arange(7, -1, -1)[None].repeat(3, 0)
    np.savez(folder / "in.npz", global_physical_count=np.ones((4, 3, 8), np.int32), physical_to_logical_map=table)


register("SGLang passes", _make_passes, lambda f: _counts(import_routing(f / "in.npz", ENGINE)))


def _answers(folder: Path) -> None:
    usage, ids = {"prompt_tokens": 3, "completion_tokens": 3}, _routed(5)
    raw = base64.b64encode(ids.astype("<i4").tobytes()).decode()
    code = base64.b64encode(ids.astype("<i2").tobytes()).decode()
    described = {"encoding": "base64", "dtype": "int16", "shape": [5, 3, 2], "data": code}
    split = [{"routed_experts": ids[3:].tolist()}, {"routed_experts": ids[3:].tolist()}]
    rows = [
        {"text": "x", "meta_info": {"id": "a", **usage, "routed_experts": raw}},
        {"id": "b", "choices": [{"text": "x"}], "sglext": {"routed_experts": raw}, "usage": usage},
        {"id": "c", "choices": [{"routed_experts": described}], "usage": usage},
        {"id": "d", "prompt_routed_experts": ids[:3].tolist(), "choices": split, "usage": usage | {"completion_tokens": 6}},
    ]
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))


register("engines' answers", _answers, lambda f: _use(import_vllm(f / "in.jsonl", EngineModel(8, top_k=2))))
register(
    "tables of experts",
    lambda f: (f / "in.csv").write_text("layer_id,expert_id,count\n" + "\n".join(f"{n % 3},{n % 8},{n}" for n in range(24))),
    lambda f: _counts(import_routing(f / "in.csv", ENGINE)),
)
register(
    "load",
    lambda f: RoutingLoad((0, 1, 2), 8, np.ones((2, 3, 8), np.int64), {"source": "x"}).save(f / "load"),
    lambda f: _counts(load_load(f / "load")),
)
