"""A placement in the files that engines read.

Formats as the engines' own source reads them: vLLM-Ascend 0.11 to 0.23 (``expert_file_to_tensor``), SGLang
(``srt/eplb/expert_location.py``), TensorRT-LLM (``examples/wide_ep/ep_load_balancer``). vLLM itself takes none (``EPLBConfig``,
as of 0.19).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moescope.files.atomic import write_atomic


@dataclass(frozen=True, eq=False)
class PlacementFiles:
    """One placement, as an artifact."""

    layers: tuple[int, ...]
    """true numbers of the layers with experts (L)"""
    placed: np.ndarray
    """(L, P) experts by place; P / devices places in turn are a device's"""
    devices: int
    counts: np.ndarray
    """(L, E) load of each expert in the requests that the placement was made from"""

    def write(self, folder: Path) -> None:
        """``vllm-ascend.json``, ``sglang.json``, ``sglang-counts.json`` and ``tensorrt-llm.yaml``."""
        for name, text in (
            ("vllm-ascend.json", json.dumps(self.vllm_ascend())),
            ("sglang.json", json.dumps(self.sglang())),
            ("sglang-counts.json", json.dumps(self.sglang_counts())),
            ("tensorrt-llm.yaml", self.tensorrt_llm()),
        ):
            write_atomic(folder / name, [(text + "\n").encode()])

    def vllm_ascend(self) -> dict[str, object]:
        """Layers with experts numbered from 0; of each device the experts that it holds."""
        room = self.placed.shape[1] // self.devices
        return {
            "moe_layer_count": len(self.layers),
            "layer_list": [
                {
                    "layer_id": number,
                    "device_count": self.devices,
                    "device_list": [
                        {"device_id": d, "device_expert": row[d * room : (d + 1) * room].tolist()} for d in range(self.devices)
                    ],
                }
                for number, row in enumerate(self.placed)
            ],
        }

    def sglang(self) -> dict[str, object]:
        """A row for every layer of the model up to the last with experts; those without have their places filled in order."""
        n_experts, places = self.counts.shape[1], self.placed.shape[1]
        rows = [(np.arange(places) % n_experts).tolist() for _ in range(self.layers[-1] + 1)]
        for layer, row in zip(self.layers, self.placed, strict=True):
            rows[layer] = row.tolist()
        return {"physical_to_logical_map": rows}

    def sglang_counts(self) -> dict[str, object]:
        """The load alone, from which SGLang makes a placement itself; likewise a row for every layer."""
        rows = [[0] * self.counts.shape[1] for _ in range(self.layers[-1] + 1)]
        for layer, row in zip(self.layers, self.counts, strict=True):
            rows[layer] = row.astype(int).tolist()
        return {"logical_count": rows}

    def tensorrt_llm(self) -> str:
        """Slots by true layer number, never moved."""
        rows = [f"  {layer}: {json.dumps(row.tolist())}" for layer, row in zip(self.layers, self.placed, strict=True)]
        slots = f"num_slots: {self.placed.shape[1]}"
        return "\n".join(["initial_global_assignments:", *rows, slots, "layer_updates_per_iter: 0"])
