"""Is a share of the layers that share of the time? Early exit on a Llama shape, on the clock.

    python benchmarks/exit.py                    # 24 layers, width 512, random weights, float32: about three minutes

Writes benchmarks/results/exit.json. Heads are random and only decide who leaves: confidences asked for are set so that rows
leave at many depths and a given share of the layers is run on average. Every run is compared with the same classifier at full
depth, batch by batch in turn; the speed-up is then set against that which the layers left out would give, by the time that they
take. Texts are random tokens of mixed length, batched as the product does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from machine import describe
from moescope.capture.encode import Encoded
from moescope.models import LoadedModel, from_model
from moescope.runtime.choices import KINDS, Kind
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.heads import Heads
from moescope.studies.exit.speed import measure

RESULT = Path(__file__).parent / "results" / "exit.json"
SHARES = (0.28, 0.5, 0.75)
CLASSES = ("a", "b")


def llama(layers: int, width: int) -> LoadedModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=width * 11 // 4 // 8 * 8, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=8192, max_position_embeddings=512,
    )  # fmt: skip
    return from_model(transformers.AutoModel.from_config(config), None, name=f"llama-{layers}x{width}")


def texts(n: int, shortest: int, longest: int) -> Encoded:
    rng = np.random.default_rng(0)
    return Encoded.from_ids([rng.integers(0, 8192, size) for size in rng.integers(shortest, longest + 1, n)])


def classifier(model: LoadedModel, kind: Kind, encoded: Encoded) -> ExitClassifier:
    """Heads of random weights, each scaled to log-odds of one, so that confidence wanders from depth to depth."""
    rng = np.random.default_rng(1)
    n, width = model.n_layers, model.d_model
    columns = tuple(np.sort(rng.choice((i + 1) * width, 10, replace=False)) for i in range(n)) if kind == "circuit" else None
    size = width if columns is None else 10
    weight = [np.stack([np.zeros(size), rng.standard_normal(size)]).astype(np.float32) for _ in range(n)]
    zero = tuple(np.zeros(2, np.float32) for _ in range(n))
    made = ExitClassifier(model, Heads(kind, tuple(weight), zero, columns), CLASSES, np.inf, tuple(range(n)))
    said = np.stack([made.fixed(i).run(encoded).probability for i in range(n)], axis=1).astype(np.float64)
    odds = np.log(np.maximum(said[:, :, 1], 1e-12)) - np.log(np.maximum(said[:, :, 0], 1e-12))
    spread = odds.std(0)
    heads = Heads(kind, tuple((w / s).astype(np.float32) for w, s in zip(weight, spread, strict=True)), zero, columns)
    return dataclasses.replace(made, heads=heads)


def asking(made: ExitClassifier, encoded: Encoded, share: float) -> ExitClassifier:
    """The confidence at which about this share of the layers is run."""
    candidates = 1 - np.geomspace(0.45, 1e-4, 60)
    n = made.model.n_layers
    said = np.stack([made.fixed(i).run(encoded).probability.max(1) for i in range(n)], axis=1)
    shares = [((said >= c).argmax(1) + np.where((said >= c).any(1), 1, n)).mean() / n for c in candidates]
    best = int(np.argmin(np.abs(np.array(shares) - share)))
    return dataclasses.replace(made, threshold=float(candidates[best]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--kind", choices=KINDS, default="circuit")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    model = llama(arguments.layers, arguments.width)
    rows: list[dict[str, Any]] = []
    for batch, encoded in ((1, texts(12, 64, 256)), (64, texts(64, 24, 64))):
        made = classifier(model, arguments.kind, encoded)
        contenders = {"full depth": made.full, "never sure": dataclasses.replace(made, threshold=np.inf)}
        contenders |= {f"{share:.0%} of the layers": asking(made, encoded, share) for share in SHARES}
        for row in measure(contenders, encoded, batch, seconds=arguments.seconds).rows:
            rows.append(row)
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
    shape = {"layers": arguments.layers, "width": arguments.width, "kind": arguments.kind}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": describe(), "model": shape, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
