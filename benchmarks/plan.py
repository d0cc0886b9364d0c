"""What `moescope plan` says beforehand, and what the same command then took.

    python benchmarks/plan.py                    # six commands on the models that are there: some minutes

Writes benchmarks/results/plan.json; `python tools/plan.py` puts it into docs/plan.md. Each command runs in a process of its own
in which torch counts the products of matrices; the peak is that process's resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe

RESULT = Path(__file__).parent / "results" / "plan.json"
CASES = (
    "circuits dense-tiny --task certainty=halueval --limit 600",
    "circuits dense-tiny --task certainty=halueval --task sentiment=uci-sentiment --limit 300 --site mlp_act",
    "circuits minilm --task certainty=halueval --limit 300",
    "circuits smollm2 --no-chat --task certainty=halueval --limit 100",
    "trace moe-tiny --prompts routing-80 --new-tokens 8",
    "signatures moe-tiny --prompts routing-80 --new-tokens 8",
)
# Products that torch's own table does not have: attention on a CPU, and experts that are multiplied together.
MEASURE = """
import json, math, sys, time
import torch
from torch.utils.flop_counter import FlopCounterMode
from moescope.cli import main
from moescope.study.provenance import peak_bytes

def attention(q, k, v, *_, out_shape=None, **__):
    rows, heads, queries, width = q
    return 2 * rows * heads * queries * k[-2] * (width + v[-1])

def grouped(a, b, *_, out_shape=None, **__):
    return 2 * math.prod(a) * b[-1]

aten = torch.ops.aten
known = {aten._scaled_dot_product_flash_attention_for_cpu: attention, aten._grouped_mm: grouped}
start = time.time()
with FlopCounterMode(display=False, custom_mapping=known) as counted:
    main(json.loads(sys.argv[1]))
peak = peak_bytes()
print("\\n" + json.dumps({"flops": counted.get_total_flops(), "peak_bytes": peak, "seconds": time.time() - start}))
"""


def measured(command: list[str]) -> dict[str, Any]:
    """FLOPs, peak and seconds of the command, and the forward tokens that its result counts."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out")
        call = [sys.executable, "-c", MEASURE, json.dumps([*command, "--out", out, "--quiet"])]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        results = Path(out) / "results.json"
        if results.is_file():
            meta = json.loads(results.read_text(encoding="utf-8"))["meta"]
            told["forward_tokens"] = meta.get("forward_tokens")
    return told


def planned(command: list[str]) -> dict[str, Any]:
    call = [sys.executable, "-m", "moescope", "plan", *command, "--json"]
    told: dict[str, Any] = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        command = case.split()
        if arguments.only not in case:
            continue
        try:
            rows.append({"command": f"moescope {case}", "planned": planned(command), "measured": measured(command)})
        except subprocess.CalledProcessError as error:
            print(f"left out: {case}: {error.stderr.strip().splitlines()[-1:]}", flush=True)
            continue
        print(rows[-1], flush=True)
    told = {"machine": describe(), "load_average": [round(n, 1) for n in os.getloadavg()], "rows": rows}
    arguments.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
