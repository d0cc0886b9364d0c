"""Routing recorded by vLLM and SGLang, in the forms in which they give it."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from moescope.errors import InputError
from moescope.routing.engines import SGLANG_CONVERSION, EngineModel, import_sglang, import_vllm

MODEL = EngineModel(n_experts=8)


def routed(tokens: int, layers: int = 3, k: int = 2, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((tokens, layers, 8)), -1)[..., :k].astype(np.int16)


def npy(array: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode()


def test_vllm_responses(tmp_path: Path) -> None:
    arrays = [routed(9), routed(6, seed=1)]
    lines = [
        {"id": "a", "choices": [{"routed_experts": npy(arrays[0])}], "usage": {"prompt_tokens": 6, "completion_tokens": 4}},
        {"id": "b", "routed_experts": arrays[1].tolist(), "prompt_tokens": 2, "category": "code", "group": "g"},
    ]
    file = tmp_path / "r.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    trace = import_vllm(file, MODEL).validate()
    np.testing.assert_array_equal(trace.ids, np.concatenate(arrays))
    assert trace.ids.dtype == np.uint8
    assert trace.generated.tolist() == [False] * 6 + [True] * 3 + [False] * 2 + [True] * 4
    assert [(s.id, s.category, s.group) for s in trace.sequences] == [("a", None, None), ("b", "code", "g")]
    assert trace.layers == (0, 1, 2)


def test_vllm_files(tmp_path: Path) -> None:
    arrays = {"a": routed(5), "b": routed(4, seed=1)}
    (tmp_path / "d").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "d" / f"{name}.npy", array)
    np.savez(tmp_path / "x.npz", **arrays)
    save_file(arrays, tmp_path / "x.safetensors")
    for source in ("d", "x.npz", "x.safetensors"):
        trace = import_vllm(tmp_path / source, MODEL, prompt_tokens={"a": 3}).validate()
        np.testing.assert_array_equal(trace.select(["a"]).ids, arrays["a"])
        assert trace.generated.sum() == 2
    one = import_vllm(tmp_path / "d" / "a.npy", EngineModel(8, layers=(1, 3, 7)))
    assert one.layers == (1, 3, 7)
    # a dump with rows for dense layers: those with experts are picked
    picked = import_vllm(tmp_path / "d" / "a.npy", EngineModel(8, layers=(1, 2)))
    np.testing.assert_array_equal(picked.ids, arrays["a"][:, 1:])


@pytest.mark.parametrize(
    ("array", "model", "message"),
    [
        (np.where(np.arange(30).reshape(5, 3, 2) == 21, 9, routed(5)), MODEL, "request r: row 3, layer 1: expert id 9 .*0-7"),
        (routed(5), EngineModel(8, layers=(0, 1, 2, 3)), "has 3 layers, but 4 layer numbers"),
        (routed(5)[0], MODEL, "must be integers"),
        (routed(5).astype(float), MODEL, "must be integers"),
    ],
)
def test_wrong_vllm_arrays_are_named(tmp_path: Path, array: np.ndarray, model: EngineModel, message: str) -> None:
    np.save(tmp_path / "r.npy", array)
    with pytest.raises(InputError, match=message):
        import_vllm(tmp_path / "r.npy", model)


def test_damaged_vllm_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "r.npy"
    np.save(file, routed(5))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"r\.npy: truncated"):
        import_vllm(file, MODEL)
    np.save(file, np.array([{"a": 1}], dtype=object))  # holds a pickle
    with pytest.raises(InputError, match="truncated or not such a file"):
        import_vllm(file, MODEL)
    lines = tmp_path / "r.jsonl"
    usage = {"prompt_tokens": 3, "completion_tokens": 9}
    for item, message in (
        ({"id": "a", "choices": [{"text": "x"}]}, "line 1: .*enable-return-routed-experts"),
        ({"id": "a", "routed_experts": npy(routed(5)), "usage": usage}, "line 1: truncated: 5 tokens .* 11 were fed"),
        ({"id": "a", "routed_experts": npy(routed(5))[:-40]}, "line 1: "),
    ):
        lines.write_text(json.dumps(item))
        with pytest.raises(InputError, match=message):
            import_vllm(lines, MODEL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no routed experts"):
        import_vllm(tmp_path / "empty", MODEL)
    with pytest.raises(InputError, match="no such file"):
        import_vllm(tmp_path / "gone.npz", MODEL)


def recorder_file(tmp_path: Path, positions: list[list[int]]) -> tuple[Path, np.ndarray]:
    """A per_token dump as SGLang writes it: one record per forward pass, and the experts it was given (T, L, 2)."""
    ids = routed(sum(map(len, positions)))
    buffer = np.full((*ids.shape[:2], 4), -1, np.int32)  # wider than top-k
    buffer[..., :2] = 7 - ids  # physical experts in reverse order
    records, row = [], 0
    for step in positions:
        part = torch.from_numpy(buffer[row : row + len(step)].transpose(1, 0, 2).copy())
        mode = 2 if len(step) == 1 else 1
        records.append({"input_ids": [9] * len(step), "positions": step, "forward_mode": mode, "topk_ids_of_layer": part})
        row += len(step)
    records.append({"input_ids": [], "positions": [], "forward_mode": 4, "topk_ids_of_layer": torch.zeros(3, 0, 4).int()})
    table = torch.arange(7, -1, -1).repeat(3, 1)
    torch.save({"records": records, "last_physical_to_logical_map": table}, tmp_path / "dump.pt")
    return tmp_path / "dump.pt", ids


def convert(source: Path) -> Path:
    target = source.with_suffix(".npz")
    subprocess.run([sys.executable, "-c", SGLANG_CONVERSION, str(source), str(target)], check=True)
    return target


def test_sglang_per_token(tmp_path: Path) -> None:
    source, ids = recorder_file(tmp_path, [[0, 1, 2], [3], [4], [0, 1], [2]])
    with pytest.raises(InputError, match="is a pickle and is never read; convert it"):
        import_sglang(source, MODEL)
    trace = import_sglang(convert(source), MODEL).validate()
    np.testing.assert_array_equal(trace.ids, ids)  # physical experts are mapped back
    assert trace.sequence.tolist() == [0] * 5 + [1] * 3
    assert trace.position.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert trace.generated.tolist() == [False, False, False, True, True, False, False, True]
    assert trace.tokens.tolist() == [9] * 8


def test_interleaved_sglang_requests_are_refused(tmp_path: Path) -> None:
    source, _ = recorder_file(tmp_path, [[0, 1, 2], [0, 1], [3], [2]])
    with pytest.raises(InputError, match=r"row 5 is at position 3 .*--max-running-requests 1"):
        import_sglang(convert(source), MODEL)


def test_a_slot_without_an_expert(tmp_path: Path) -> None:
    np.save(tmp_path / "r.npy", np.where(np.arange(30).reshape(5, 3, 2) == 4, -1, routed(5)))
    trace = import_vllm(tmp_path / "r.npy", MODEL).validate()
    assert trace.ids[0, 2].tolist() == [trace.empty, int(routed(5)[0, 2, 1])]
    assert trace.counts().sum() == 29


def test_sglang_counts_are_no_trace(tmp_path: Path) -> None:
    torch.save({"logical_count": torch.zeros(4, 3, 8, dtype=torch.int32), "rank": 0}, tmp_path / "stat.pt")
    with pytest.raises(InputError, match="counts choices without tokens"):
        import_sglang(convert(tmp_path / "stat.pt"), MODEL)


def test_truncated_sglang_dump(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "topk_ids_of_layer": routed(5).transpose(1, 0, 2),
        "input_ids": np.zeros(4),
        "positions": np.arange(5),
    }
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match="truncated: 5 rows of experts, 4 tokens"):
        import_sglang(tmp_path / "d.npz", MODEL)
