"""Writes answers as vLLM gives them, without vLLM: the embedded ``moe-tiny`` generates, and each answer says where tokens went.

python examples/vllm_responses.py responses.jsonl

The shape is that of ``/v1/completions`` under ``vllm serve … --enable-return-routed-experts`` (0.22 and newer): every choice
has ``routed_experts``, an int32 array (tokens, layers, experts of a token) as an ``.npy`` file in base64. The last token
generated is never fed back, so that a prompt of P tokens and an answer of N have P + N − 1 rows. A server puts ``cmpl-`` before
the id that the client sent as ``X-Request-Id``.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np

import moescope


def answers(prompts: str = "routing-80", new_tokens: int = 8) -> list[dict[str, object]]:
    """One answer to each prompt of a shipped set."""
    model = moescope.load_model("moe-tiny", head=True)
    trace = moescope.trace(model, prompts, moescope.TraceSettings(new_tokens=new_tokens))
    found: list[dict[str, object]] = []
    for number, sequence in enumerate(trace.sequences):
        rows = trace.sequence == number
        buffer = io.BytesIO()
        np.save(buffer, trace.ids[rows].astype(np.int32))
        generated = int(trace.generated[rows].sum()) + 1
        prompt = int(rows.sum()) - generated + 1
        usage = {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
        choice = {
            "index": 0,
            "finish_reason": "length",
            "routed_experts": base64.b64encode(buffer.getvalue()).decode(),
        }
        found.append(
            {
                "id": f"cmpl-{sequence.id}",
                "object": "text_completion",
                "model": "moe-tiny",
                "choices": [choice],
                "usage": usage,
            }
        )
    return found


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("".join(json.dumps(answer) + "\n" for answer in answers()), encoding="utf-8")
