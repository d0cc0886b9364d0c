"""Edits of experts as a checkpoint: what stands in its tensors, and that plain transformers computes what the edits do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import moescope
from moescope.capture.encode import Encoded
from moescope.cli import main
from moescope.errors import InputError
from moescope.intervene.experts import Expert, ExpertEdits, steer_experts
from moescope.models import LoadedModel
from moescope.models.experts import expert_layers
from moescope.models.load import from_model
from moescope.models.tiny import tiny_module
from moescope.studies.steer.export import export, patch_of
from moescope.tasks.passages import load_passages
from tests.architectures import tiny_tokenizer

IDS = np.random.default_rng(1).integers(3, 60, (3, 12))
# imports transformers alone: another process, as an engine would be
READER = """
import json, sys, torch
from transformers import AutoModelForCausalLM
ids, found = torch.tensor(json.loads(sys.argv[2])), {}
for kind in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/{kind}", dtype=torch.float32).eval()
    with torch.no_grad():
        found[kind] = model(input_ids=ids, use_cache=False).logits
assert not any(name.startswith("moescope") for name in sys.modules)
torch.save(found, f"{sys.argv[1]}/logits.pt")
"""


def tiny(kind: str) -> LoadedModel:
    return from_model(tiny_module(kind), tiny_tokenizer(), name=kind)


def layers(model: LoadedModel) -> list[int]:
    return [layer.layer for layer in expert_layers(model)]


def hooked(model: LoadedModel, edits: ExpertEdits) -> torch.Tensor:
    with torch.no_grad(), steer_experts(model, edits):
        return model.module(input_ids=torch.from_numpy(IDS), use_cache=False).logits  # type: ignore[no-any-return]


def elsewhere(folder: Path, kinds: list[str]) -> dict[str, torch.Tensor]:
    """Logits by plain transformers in a fresh process."""
    arguments = [sys.executable, "-c", READER, str(folder), json.dumps(IDS.tolist()), *kinds]
    subprocess.run(arguments, check=True, capture_output=True, timeout=200)
    found: dict[str, torch.Tensor] = torch.load(folder / "logits.pt", weights_only=True)
    return found


def test_a_ban_and_a_boost_stand_in_the_bias() -> None:
    model = tiny("gpt_oss")
    first = layers(model)[0]
    edits = ExpertEdits(ban=frozenset([Expert(first, 2)]), boost={Expert(first, 1): 1.5})
    patch = patch_of(model, edits)
    name = next(change.tensor for change in patch.changes)
    assert name.endswith("router.bias")
    before, after = model.module.state_dict()[name], patch.state[name]
    added = (after - before).tolist()
    assert added[1] == pytest.approx(1.5, abs=1e-5)
    assert added[2] < -1000
    assert [added[e] for e in range(len(added)) if e not in (1, 2)] == [0] * (len(added) - 2)
    choice = tiny("deepseek_v3")
    at = layers(choice)[0]
    state = patch_of(choice, ExpertEdits(ban=frozenset([Expert(at, 3)]))).state
    bias = next(value for key, value in state.items() if f".{at}." in key and key.endswith("e_score_correction_bias"))
    assert int(bias.argmin()) == 3
    assert bias[3] < -1000


def test_experts_are_left_out_and_scaled() -> None:
    model = tiny("olmoe")
    edits = ExpertEdits(ban=frozenset(Expert(n, 2) for n in layers(model)), scale={Expert(layers(model)[0], 1): 0.5})
    patch, own = patch_of(model, edits), model.module.state_dict()
    n = int(model.config.num_experts)
    assert patch.config["num_experts"] == n - 1
    gate = next(key for key in own if key.endswith("gate.weight"))
    keep = [e for e in range(n) if e != 2]
    assert torch.equal(patch.state[gate], own[gate][keep])
    down = next(key for key in own if key.endswith("down_proj"))
    whole = own[down].clone()
    whole[1] *= 0.5
    assert torch.equal(patch.state[down], whole[keep])


CASES = {
    "gpt_oss": lambda first, every: ExpertEdits(ban=frozenset([first(2)]), boost={first(1): 1.5}, scale={first(3): 0.25}),
    "glm4_moe": lambda first, every: ExpertEdits(ban=frozenset([first(2), first(3)])),
    "qwen3_moe": lambda first, every: ExpertEdits(ban=every(2), scale={first(1): 0.5}),
}


def test_plain_transformers_computes_what_the_edits_do(tmp_path: Path) -> None:
    want, plain = {}, {}
    for kind, case in CASES.items():
        model = tiny(kind)
        numbers = layers(model)
        edits = case(lambda e, n=numbers[0]: Expert(n, e), lambda e, n=numbers: frozenset(Expert(number, e) for number in n))
        before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
        config = model.config.to_dict()
        done = export(model, edits, Encoded.from_ids(list(IDS)))
        done.checkpoint.write(tmp_path / kind)
        want[kind], plain[kind] = hooked(model, edits), hooked(model, ExpertEdits())
        assert done.difference < 1e-5 < done.untouched
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
        assert {**model.config.to_dict(), "architectures": None} == {**config, "architectures": None}
    for kind, found in elsewhere(tmp_path, list(CASES)).items():
        assert float((found - want[kind]).norm() / want[kind].norm()) < 1e-5
        assert float((plain[kind] - want[kind]).norm() / want[kind].norm()) > 1e-2


def refused(kind: str, **edits: object) -> str:
    model = tiny(kind)
    try:
        export(model, ExpertEdits(**edits), Encoded.from_ids(list(IDS)))  # type: ignore[arg-type]
    except InputError as error:
        return str(error)
    return ""


def test_what_cannot_be_written_is_refused_by_name() -> None:
    olmoe = layers(tiny("olmoe"))[0]
    assert "type 'olmoe' has no bias on its logits" in refused("olmoe", boost={Expert(olmoe, 1): 1.0})
    assert "as many in each layer" in refused("olmoe", ban=frozenset([Expert(olmoe, 1)]))
    assert "joins the choice alone" in refused("deepseek_v3", boost={Expert(1, 1): 1.0})
    assert "no tensor of a router forces" in refused("gpt_oss", force=frozenset([Expert(0, 1)]))
    # a softmax whose bias joins the choice alone: the banned expert keeps its probability
    assert "gives other logits than the edits do" in refused("ernie4_5_moe", ban=frozenset([Expert(1, 1)]))


def test_the_study_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": p.text[:200], "category": p.category, "group": p.group} for p in load_passages() if p.category != "story"]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows[::8]))
    few = ["--text", str(tmp_path / "t.jsonl"), "--text-tokens", "32", "--length", "8", "--new-tokens", "0"]
    few += ["--prompts", "routing-80"]
    arguments = ["steer", "moe-tiny", "--ban-top", "code=1", "--match", "overall", *few]
    with pytest.raises(SystemExit):
        main([*arguments, "--export", "llama.cpp", "--out", str(tmp_path / "no")])
    assert "llama.cpp takes no bans" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["steer", "moe-tiny", "--ban", "1:2", "--random", "199", "--export", "vllm", "--out", str(tmp_path / "no")])
    assert "ban as many in every layer" in capsys.readouterr().err
    main([*arguments, "--random", "79", "--export", "vllm", "--out", str(tmp_path / "out")])
    found = moescope.load(tmp_path / "out")
    claim = next(c for c in found.claims if "computes what the edits do" in c.statement)
    assert claim.measured < 1e-5  # type: ignore[operator]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_experts"] == 15
    assert set(found.table("export")["layer"]) == {0, 1, 2, 3, 4}
    assert moescope.load_model(tmp_path / "out").config.num_experts == 15
