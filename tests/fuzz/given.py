"""Readers of what users give: tables, prompts, texts, models, chat templates, options."""

from __future__ import annotations

import contextlib
import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import moescope
from moescope.capture import encode
from moescope.cli.run import _read
from moescope.models.gated import gated_mlps
from moescope.models.pretrained import read_config
from moescope.models.reading import rendered
from moescope.models.source import check_folder, find_source, weight_files
from moescope.models.weights import stored
from moescope.studies.distill.layer_data import read_texts
from moescope.studies.sparsify.build import write_sparse
from moescope.studies.sparsify.methods import coded
from moescope.studies.sparsify.settings import Format
from moescope.study.repeat import read_yaml
from moescope.tasks import load_prompts, load_task
from tests.architectures import build, save_tiny
from tests.chat import TEMPLATE, chat_model
from tests.fuzz.registry import TEXTS, register, tiny

_ROWS = [
    {"text": f"{w} is {'good' if i % 2 else 'bad'}", "label": ["no", "yes"][i % 2], "n": i} for i, w in enumerate("abcdefghij")
]


def _make_table(folder: Path, suffix: str) -> None:
    file = folder / f"in{suffix}"
    if suffix == ".parquet":
        pd.DataFrame(_ROWS).to_parquet(file)
    elif suffix == ".json":
        file.write_text(json.dumps(_ROWS))
    elif suffix.startswith(".jsonl"):
        pd.DataFrame(_ROWS).to_json(file, orient="records", lines=True)
    else:
        pd.DataFrame(_ROWS).to_csv(file, sep="\t" if suffix == ".tsv" else ",", index=False)


def _read_table(folder: Path, suffix: str) -> None:
    task = load_task(f"{folder / f'in{suffix}'}?label=label", limit=4)
    assert all(isinstance(e.text, str) and 0 <= e.label < len(task.classes) for e in task.examples)
    encode(tiny(), [e.text for e in task.examples][:2])


for suffix in (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".csv.gz", ".jsonl.xz", ".csv.bz2"):
    register(f"task {suffix}", lambda f, s=suffix: _make_table(f, s), lambda f, s=suffix: _read_table(f, s))  # type: ignore[misc]


_STUDY = """study: circuits
model: dense-tiny
tasks:
  certainty: halueval
settings: {k: 10, alpha: 0.05, site: resid, ablate: mean}
run: {seed: 3, batch_tokens: 2048, dtype: auto}
"""


def _make_prompts(folder: Path) -> None:
    rows = [{"id": str(i), "text": f"text {i}", "category": "ab"[i % 2], "topic": "t", "template": "u"} for i in range(6)]
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))


register("prompts", _make_prompts, lambda f: [p.group for p in load_prompts(f / "in.jsonl", limit=4)])
register(
    "study YAML",
    lambda f: (f / "study.yaml").write_text(_STUDY),
    lambda f: _read(f / "study.yaml", read_yaml(f / "study.yaml")),
)
register("texts", lambda f: (f / "in.txt").write_text("one text\n\nanother one\n\nthird"), lambda f: read_texts(f / "in.txt"))


def _read_headers(folder: Path) -> None:
    """What is read of a model before its weights are."""
    source = find_source(folder)
    check_folder(source)
    stored(weight_files(source.folder), read_config(source, False), source.name)


def _read_model(folder: Path) -> None:
    model = moescope.load_model(folder, head=True)
    encode(model, list(TEXTS))
    _ = model.fingerprint


def _make_template(folder: Path) -> None:
    (folder / "template.txt").write_text(TEMPLATE)


def _read_template(folder: Path) -> None:
    text = (folder / "template.txt").read_bytes().decode("utf-8", "replace")
    model = chat_model(tiny(), text)
    rendered(model.tokenizer, "hello")
    encode(model.read_as(chat=True), list(TEXTS))


register("model headers", save_tiny, _read_headers)
register("model", save_tiny, _read_model, slow=True)


def _make_sparse(folder: Path) -> None:
    mlps = gated_mlps(tiny())
    write_sparse(tiny(), coded(mlps, 6), [mlp.neurons // 2 for mlp in mlps], Format(0.5, 3, 6), folder)


register("sparse model", _make_sparse, _read_model, slow=True)
register("chat template", _make_template, _read_template, files=False)


def _make_adapter(folder: Path) -> None:
    import peft

    base = save_tiny(folder / "base")
    model = peft.get_peft_model(build("llama", head=True), peft.LoraConfig(target_modules=["q_proj"], r=2))
    model.peft_config["default"].base_model_name_or_path = str(base.name)
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)


if find_spec("peft"):
    register("adapter", _make_adapter, lambda f: moescope.load_model(f / "adapter").fingerprint, slow=True)


def _make_gguf(folder: Path) -> None:
    from tests.test_models_gguf import write

    write(folder / "in.gguf")


def _read_gguf(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOESCOPE_CACHE", str(folder / "cache"))
        moescope.load_model(folder / "in.gguf")


if find_spec("gguf"):
    register("GGUF", _make_gguf, _read_gguf, slow=True)

# -- what has no file ----------------------------------------------------------------------------------------------------------


def _members(file: Path) -> list[tuple[str, Any]]:
    """What the file holds by name; nothing where Python cannot read it either."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return []
    return list(found.items()) if isinstance(found, dict) else []


def _read_memory(folder: Path) -> None:
    for name, value in _members(folder / "in.json"):
        if name == "prompts":
            load_prompts(value)
        else:
            load_task(value)


def _make_memory(folder: Path) -> None:
    columns = {key: [row[key] for row in _ROWS] for key in ("text", "label")}
    given = {
        "rows": _ROWS,
        "columns": columns,
        "pairs": [["a b", "x"], ["c d", "y"]],
        "prompts": {"code": ["a", "b"], "math": ["c"]},
    }
    (folder / "in.json").write_text(json.dumps(given))


register("tables in memory", _make_memory, _read_memory, files=False)

_SPEC = "t=uci-sentiment?limit=20&template=Is it good? {text} Answer:&answers=no,yes"
register(
    "task specification",
    lambda f: (f / "in.txt").write_text(_SPEC),
    lambda f: load_task((f / "in.txt").read_bytes().decode("utf-8", "surrogateescape")),
    files=False,
)

_OPTIONS = {
    "circuits": {
        "--seed": "0",
        "--limit": "20",
        "--alpha": "0.05",
        "--k": "10",
        "--ks": "1,2,5",
        "--folds": "5",
        "--sites": "resid",
    },
    "exit": {
        "--task": "uci-sentiment",
        "--risk": "0.05",
        "--batch-tokens": "8192",
        "--max-tokens": "64",
        "--dtype": "fp32",
        "--device": "cpu",
    },
    "distill": {"--layer": "1", "--lr": "0.001", "--epochs": "1", "--active": "2,4", "--experts": "16", "--memory": "1"},
    "prune": {"--ratio": "0.5", "--out": "out", "--special-tokens": "all"},
    "signatures": {"--prompts": "routing-80", "--limit": "8"},
    "trace": {"--vllm": "in.npz", "--experts": "8", "--layers": "0-2,4"},
}


def _make_options(folder: Path) -> None:
    (folder / "in.json").write_text(json.dumps(_OPTIONS))


def _read_options(folder: Path) -> None:
    """Options of commands whose model does not exist: all that is said before it is looked for, in one line."""
    from moescope.cli import main

    said = io.StringIO()
    for name, options in _members(folder / "in.json"):
        if name not in _OPTIONS or not isinstance(options, dict) or options == _OPTIONS[name]:
            continue
        words = [str(part) for pair in options.items() for part in pair]
        model = [] if name == "trace" else [str(folder / "no-model")]
        with (
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.chdir(folder),
            contextlib.suppress(SystemExit),
        ):
            main([name, *model, *words])
    for line in said.getvalue().split("\n"):
        assert not line.strip() or (line.startswith("error: ") and line.isprintable() and len(line) < 3000), line


register("options", _make_options, _read_options, files=False, slow=True)
