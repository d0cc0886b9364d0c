"""The third study on a machine without the model: its first layers are packed here and distilled there.

    python benchmarks/secret_moe_prefix.py pack gemma3-270m 9 wikitext-2.valid.txt wikitext-2.test.txt --to pack.npz
    python benchmarks/secret_moe_prefix.py run pack.npz --steps 15000 --lr 1e-3 --out moescope-out/secret-moe

What an MLP receives depends on no later layer and on no token that the text lacks. ``pack`` keeps the weights of a GGUF
model up to one layer, the rows of its embedding that the text needs, and the text as ids; ``run`` is `moescope reproduce
secret-moe` on the very same activations. The pack of Gemma-3-270M up to layer 9 is 49 MB, its file 253 MB.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from moescope.models import from_model, load
from moescope.models.source import find_source
from moescope.studies.distill.reproduce import reproduce
from moescope.studies.distill.settings import DistillSettings
from moescope.study.run import Run
from moescope.tasks import articles
from moescope.zoo import packaged

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")  # ids 0 to 3 of Gemma
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def pack(name: str, layer: int, files: list[Path], to: Path) -> None:
    """Write the model up to ``layer`` and the text of ``files``; every tensor is checked to be what the model holds."""
    folder = find_source(name).folder
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    documents = [[line for line in article.split("\n") if line.strip()] for article in articles(text)]
    ids = tokenizer([line for document in documents for line in document])["input_ids"]
    used = np.array(sorted({0, 1, 2, 3} | {token for line in ids for token in line}))
    arrays: dict[str, np.ndarray] = {}
    kinds: dict[str, str] = {}
    joined = to.with_suffix(".gguf")
    joined.write_bytes(b"".join(part.read_bytes() for part in packaged(name)))
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(joined).tensors}
    with safe_open(folder / "model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118  a handle, not a dict
            short = key.removeprefix("model.")
            place = re.match(r"layers\.(\d+)\.(.*)\.weight", short)
            if short.startswith("lm_head") or (place and int(place[1]) > layer):
                continue
            values = file.get_tensor(key).numpy()
            if values.ndim == 1:
                arrays[short], kinds[short] = values, "F32"
                continue
            source = stored["token_embd.weight" if place is None else f"blk.{place[1]}.{GGUF_NAMES[place[2]]}.weight"]
            data = np.asarray(source.data)
            data, values = (data[used], values[used]) if place is None else (data, values)
            if not np.array_equal(gguf.quants.dequantize(data, source.tensor_type), values):
                raise SystemExit(f"{short} is not what {name} holds")
            arrays[short], kinds[short] = data, source.tensor_type.name
    joined.unlink()
    meta = {
        "name": name,
        "layer": layer,
        "kinds": kinds,
        "lines": [len(document) for document in documents],
        "config": json.loads((folder / "config.json").read_text()),
        "quantisation": load(name).quantisation,
    }
    new = np.full(used.max() + 1, -1)
    new[used] = np.arange(len(used))
    np.savez(
        to,
        ids=new[np.concatenate([line[1:] for line in ids])].astype(np.int32),
        ends=np.cumsum([0, *(len(line) - 1 for line in ids)]),
        meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
        **arrays,
    )


def unpacked(file: Path) -> tuple[Any, list[str]]:
    """The model, loaded onto a GPU where there is one, and the documents, whose words are token numbers."""
    held = np.load(file)
    meta = json.loads(bytes(held["meta"]))
    config: Any = transformers.AutoConfig.for_model(**meta["config"])
    config.num_hidden_layers = meta["layer"] + 1
    config.layer_types = config.layer_types[: meta["layer"] + 1]
    size = config.vocab_size = len(held["embed_tokens.weight"])
    body: Any = transformers.AutoModel.from_config(config, dtype=torch.float32)
    state = {
        name: torch.from_numpy(
            np.ascontiguousarray(
                held[name] if kind == "F32" else gguf.quants.dequantize(held[name], gguf.GGMLQuantizationType[kind])
            )
        )
        for name, kind in meta["kinds"].items()
    }
    body.load_state_dict(state)
    raw = Tokenizer(models.WordLevel({**{t: i for i, t in enumerate(SPECIAL)}, **{str(i): i for i in range(4, size)}}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), SPECIAL, strict=True))
    tokenizer: Any = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left", **names)
    tokenizer.model_max_length = config.max_position_embeddings
    model = from_model(body.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, name=meta["name"])
    model.quantisation = meta["quantisation"]
    words = [*SPECIAL, *map(str, range(4, size))]
    lines = iter([" ".join(words[t] for t in held["ids"][a:b].tolist()) for a, b in pairwise(held["ends"])])
    return model, ["\n".join(next(lines) for _ in range(n)) for n in meta["lines"]]


def run(options: argparse.Namespace) -> None:
    """Reproduce the third study on a pack and save its result, without the students."""
    model, documents = unpacked(options.pack)
    told: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if time.time() - told.get(stage, 0) > 20 or done == total:
            told[stage] = time.time()
            print(stage, done, total, flush=True)

    settings = DistillSettings(
        layer=model.n_layers - 1,
        experts=options.experts,
        active=tuple(options.active),
        rank=128,
        padding="keep",
        control=("gaussian", "no-padding", "no-padding-gaussian"),
        lr=tuple(options.lr),
        seeds=options.seeds,
        steps=options.steps,
        precision="tf32" if torch.cuda.is_available() else "fp32",
        memory=60.0,
        equal_cost=False,
    )
    result = reproduce(model, documents, settings, run=Run(progress=progress, batch_tokens=32768))
    tables = {name: table for name, table in result.tables.items() if name != "experts"}  # its tokens are numbers
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    meta = {**result.meta, "command": " ".join(["python", *sys.argv]), "device": device}
    dataclasses.replace(result, artifacts={}, tables=tables, meta=meta).save(options.out)
    print(result.tables["published"].to_string())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    packing = verbs.add_parser("pack")
    packing.add_argument("name")
    packing.add_argument("layer", type=int)
    packing.add_argument("files", type=Path, nargs="+")
    packing.add_argument("--to", type=Path, required=True)
    packing.set_defaults(verb=lambda o: pack(o.name, o.layer, o.files, o.to))
    running = verbs.add_parser("run")
    running.add_argument("pack", type=Path)
    running.add_argument("--steps", type=int, default=15_000)
    running.add_argument("--seeds", type=int, default=3)
    running.add_argument("--experts", type=int, default=10_000)
    running.add_argument("--active", type=int, nargs="+", default=[32])
    running.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    running.add_argument("--out", type=Path, required=True)
    running.set_defaults(verb=run)
    options = parser.parse_args()
    options.verb(options)


if __name__ == "__main__":
    main()
