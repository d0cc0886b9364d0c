"""A checkpoint with fewer experts: what plain transformers makes of it, and what running it layer by layer gives."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.models import load as load_model
from moescope.models.experts.layers import find_layers
from moescope.models.layered import Layered, open_layered, whole
from moescope.models.tiny import FOREIGN, NotBuilt, tiny_module
from moescope.runtime.mask import PruneMask, prune_mask
from moescope.studies.prune.checkpoint import Made, write_pruned
from moescope.studies.prune.cut import Cut, banks_of
from moescope.studies.prune.tasks import harness_model, score
from moescope.study.choice_tasks import task_cases, task_table
from moescope.study.verdicts import verdicts
from tests.architectures import tiny_tokenizer
from tests.harness_task import write_task

# fused experts with biases, experts one by one under two names, shared experts with a selection bias, groups of experts
TYPES = ("olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "glm4_moe", "deepseek_v3")
TEXTS = [torch.arange(3, 40, 2), torch.arange(5, 60, 2), torch.arange(40, 3, -2)]


def saved(folder: Path, model_type: str, **changes: Any) -> Path:
    """A tiny random model of the type, as save_pretrained writes it."""
    module: Any = tiny_module(model_type)
    module.save_pretrained(folder, **changes)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def random_mask(layered: Layered, ratio: float = 0.5, seed: int = 0) -> PruneMask:
    banks, rng = banks_of(layered), np.random.default_rng(seed)
    draws = {layer.layer: rng.random(layer.n_experts) for layer in banks.layers}
    return prune_mask(draws, ratio, top_k=banks.top_k, groups=banks.groups)


def pruned(layered: Layered, mask: PruneMask, folder: Path) -> tuple[Cut, Made]:
    folder.mkdir()
    cut = Cut(layered, banks_of(layered), mask.kept)
    return cut, write_pruned(cut, mask, folder)


def plain(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits_of(layered: Layered, edit: Any) -> dict[int, torch.Tensor]:
    """By text, layer by layer."""
    begun = layered.begin(TEXTS, 64)
    (states,) = layered.sweep(begun, [edit])
    found = {}
    with layered.head() as head:
        for rows, state in zip(begun.rows, states, strict=True):
            found |= dict(zip(rows.tolist(), head(state), strict=True))
    return found


@pytest.mark.parametrize("model_type", TYPES)
def test_layer_by_layer_is_the_model_and_the_cut_model_is_what_was_written(tmp_path: Path, model_type: str) -> None:
    layered = open_layered(saved(tmp_path / "whole", model_type), dtype="fp32")
    mask = random_mask(layered)
    cut, _ = pruned(layered, mask, tmp_path / "cut")
    for edit, folder in ((whole, "whole"), (cut.edit(mask.keep), "cut")):
        reference, found = plain(tmp_path / folder), logits_of(layered, edit)
        for number, text in enumerate(TEXTS):
            with torch.no_grad():
                expected = reference(input_ids=text[None]).logits[0]
            assert torch.allclose(found[number], expected, atol=1e-5)
    assert not torch.allclose(logits_of(layered, whole)[0], logits_of(layered, cut.edit(mask.keep))[0], atol=1e-2)


@pytest.mark.slow
def test_every_type_of_transformers_is_cut_right_or_refused(tmp_path: Path) -> None:
    cut, refused = [], []
    for model_type, config in transformers.CONFIG_MAPPING.items():
        if config not in transformers.AutoModelForCausalLM._model_mapping:
            continue
        try:
            module: Any = tiny_module(model_type)
            mixture = bool(find_layers(module.base_model))
        except (NotBuilt, InputError, *FOREIGN):
            continue
        if not mixture:
            continue
        folder = tmp_path / model_type
        module.save_pretrained(folder / "whole")
        tiny_tokenizer().save_pretrained(folder / "whole")
        try:
            layered = open_layered(folder / "whole", dtype="fp32")
            mask = random_mask(layered)
            edit = pruned(layered, mask, folder / "cut")[0].edit(mask.keep)
        except InputError:
            refused.append(model_type)
            continue
        with torch.no_grad():
            expected = plain(folder / "cut")(input_ids=TEXTS[0][None], use_cache=False).logits[0]
        assert torch.allclose(logits_of(layered, edit)[0], expected, atol=1e-4), model_type
        cut.append(model_type)
    assert len(cut) >= 45, (cut, refused)


@pytest.mark.parametrize("model_type", ["glm4_moe", "gpt_oss"])
def test_what_stays_is_the_sources_own(tmp_path: Path, model_type: str) -> None:
    """Router rows, selection biases and experts, by the order of the experts that stay; the rest bit for bit."""
    layered = open_layered(saved(tmp_path / "whole", model_type), dtype="fp32")
    mask = random_mask(layered)
    pruned(layered, mask, tmp_path / "cut")
    before, after = plain(tmp_path / "whole").state_dict(), plain(tmp_path / "cut").state_dict()
    assert before.keys() == after.keys()
    cut = 0
    for name, tensor in before.items():
        if tensor.shape == after[name].shape:
            assert torch.equal(tensor, after[name]), name
        else:
            cut += 1
            layer = int(name.split(".")[2])
            assert torch.equal(tensor[torch.from_numpy(mask.keep[layer])], after[name]), name
    assert cut == {"glm4_moe": 4, "gpt_oss": 6}[model_type] * len(mask.keep)


def test_large_tensors_are_read_and_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "whole", "gpt_oss")
    layered = open_layered(folder, dtype="fp32")
    mask = random_mask(layered)
    pruned(layered, mask, tmp_path / "cut")
    monkeypatch.setattr("moescope.models.layered.files._AT_ONCE", 1000)
    monkeypatch.setattr("moescope.models.layered.write._AT_ONCE", 20000)
    again = open_layered(folder, dtype="fp32")
    assert again.model.fingerprint == layered.model.fingerprint
    pruned(again, mask, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "cut" / "model.safetensors").read_bytes()


def test_a_fresh_process_loads_it_with_transformers_alone(tmp_path: Path) -> None:
    layered = open_layered("moe-tiny")
    mask = random_mask(layered)
    cut, made = pruned(layered, mask, tmp_path / "cut")
    assert made.config == {"num_experts": [16, 8]}
    script = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = torch.arange(3, 40, 2)[None]\n"
        "assert 'moescope' not in sys.modules\n"
        "print(model.config.num_experts, len(tokenizer), model(input_ids=ids).logits[0, -1].double().sum().item())\n"
    )
    line = [sys.executable, "-c", script, str(tmp_path / "cut")]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env={"PATH": "", "HF_HUB_OFFLINE": "1"})
    experts, vocabulary, total = done.stdout.split()
    assert (int(experts), int(vocabulary)) == (8, len(layered.model.tokenizer))
    found = logits_of(layered, cut.edit(mask.keep))[0]
    assert float(total) == pytest.approx(float(found[-1].double().sum()), abs=1e-2)


def test_files_in_several_pieces_and_in_halves_stay_so(tmp_path: Path) -> None:
    folder = saved(tmp_path / "whole", "mixtral", max_shard_size="60KB")
    for file in folder.glob("*.safetensors"):
        save_file({name: t.bfloat16() for name, t in load_file(file).items()}, file, {"format": "pt"})
    layered = open_layered(folder)
    mask = random_mask(layered)
    _, made = pruned(layered, mask, tmp_path / "cut")
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    total = 0
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "cut" / file, "pt") as handle:
            tensor = handle.get_tensor(name)
        assert tensor.dtype == torch.bfloat16
        total += tensor.nbytes
    assert total == index["metadata"]["total_size"] == made.bytes
    assert plain(tmp_path / "cut").config.num_local_experts == 4


@cache
def tiny() -> tuple[Layered, LoadedModel]:
    return open_layered("moe-tiny"), load_model("moe-tiny", head=True)


def test_it_is_known_as_the_same_model() -> None:
    layered, loaded = tiny()
    assert layered.model.fingerprint == loaded.fingerprint
    assert open_layered(loaded).model.fingerprint == loaded.fingerprint


def test_weights_are_in_memory_one_layer_at_a_time() -> None:
    layered, _ = tiny()
    module: Any = layered.model.module
    held: list[int] = []

    def edit(number: int, layer: Any) -> Any:
        held.append(sum(p.numel() for p in module.parameters() if not p.is_meta))
        return whole(number, layer)

    layered.sweep(layered.begin(TEXTS, 64), [edit])
    one = sum(p.numel() for p in module.model.layers[0].parameters())
    assert held == [one] * 5
    assert all(p.is_meta for p in module.parameters())


def test_a_mask_that_no_config_could_say_is_refused(tmp_path: Path) -> None:
    layered, _ = tiny()
    mask = random_mask(layered)
    uneven = PruneMask({layer: keep if layer else np.ones(16, dtype=bool) for layer, keep in mask.keep.items()})
    with pytest.raises(InputError, match="keeps 16 experts in layer 0 and 8 in layer 1: a config has one number"):
        write_pruned(Cut(layered, banks_of(layered), 8), uneven, tmp_path)
    other = PruneMask({0: np.arange(8) < 4})
    with pytest.raises(InputError, match=r"^mask: the mask is not one of 5 layers of 16 experts"):
        write_pruned(Cut(layered, banks_of(layered), 4), other, tmp_path)
    with pytest.raises(InputError, match=r"^ratio: this leaves 3 of 16 experts, but each token needs 4"):
        Cut(layered, banks_of(layered), 3)
    assert list(tmp_path.iterdir()) == []


def test_groups_of_experts_lose_as_many_each(tmp_path: Path) -> None:
    """A router that chooses among groups first parts what is left of them by their places."""
    layered = open_layered(saved(tmp_path / "whole", "deepseek_v3"), dtype="fp32")
    banks = banks_of(layered)
    assert (banks.groups, banks.n_experts) == (2, 8)
    scores = {layer.layer: np.arange(8.0) for layer in banks.layers}
    mask = prune_mask(scores, 0.5, top_k=2, groups=2)
    assert all(np.flatnonzero(keep).tolist() == [2, 3, 6, 7] for keep in mask.keep.values())
    with pytest.raises(
        InputError,
        match=r"^ratio: this leaves 5 of 8 experts, but .* 2 groups of one size: their number must be a multiple of 2",
    ):
        banks.check(5)
    with pytest.raises(InputError, match="leaves out 3 of 8 experts, which 2 groups cannot share"):
        prune_mask(scores, 0.375, top_k=2, groups=2)


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("llama", "is dense"),
        ("jetmoe", "is not called as a bank of experts beside a router"),
        ("deepseek_v4", "its layers hand on more than hidden states"),
        ("ernie4_5_moe", "is not cut by leaving out rows"),
    ],
)
def test_types_that_cannot_be_cut_are_refused_by_name(tmp_path: Path, model_type: str, said: str) -> None:
    def opened() -> None:
        layered = open_layered(folder, dtype="fp32")
        Cut(layered, banks_of(layered), 4)

    folder = saved(tmp_path, model_type)
    with pytest.raises(InputError, match=said):
        opened()


def test_further_layers_that_the_model_does_not_run_are_left_out(tmp_path: Path) -> None:
    folder = saved(tmp_path / "whole", "glm4_moe")
    tensors = load_file(folder / "model.safetensors")
    further = {name.replace("layers.3.", "layers.4."): t.clone() for name, t in tensors.items() if "layers.3." in name}
    save_file(tensors | further, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    layered = open_layered(folder, dtype="fp32")
    _, made = pruned(layered, random_mask(layered), tmp_path / "cut")
    assert made.config == {"n_routed_experts": [8, 4], "num_nextn_predict_layers": [1, 0]}
    assert set(made.dropped) == set(further)
    assert not any("layers.4." in name for name in load_file(tmp_path / "cut" / "model.safetensors"))


def test_a_continuation_is_scored_as_by_the_whole_model() -> None:
    layered, loaded = tiny()
    requests = [([5, 9, 30], [7, 8]), ([5, 9, 30, 4], [11]), ([40], [7, 8, 9, 10])]
    for (context, more), (value, greedy) in zip(requests, score(layered, requests, 64), strict=True):
        with torch.no_grad():
            logits: torch.Tensor = loaded.module(input_ids=torch.tensor([[*context, *more]])).logits[0]  # type: ignore[operator]
        likely = logits.log_softmax(-1)[len(context) - 1 : -1]
        assert value == pytest.approx(float(likely[range(len(more)), more].sum()), rel=1e-4)
        assert greedy == (likely.argmax(-1).tolist() == more)


def test_a_task_that_the_whole_model_cannot_do_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the harness gives is made up: on one task the whole model is always right, on the other by chance."""

    def harness(lm: str, tasks: Any, **_: Any) -> dict[str, Any]:
        right = {"known": np.ones(40), "coin": np.arange(40) % 2}
        if lm == "pruned":
            right["known"][:10] = 0
        samples = {
            t: [{"doc_id": i, "acc": a, "arguments": [0, 0]} for i, a in enumerate(right[t])] for t in tasks if t in right
        }
        results = {t: {"acc,none": of.mean(), "acc_norm,none": 0.25, "alias": t} for t, of in right.items()}
        samples["story"] = [{"doc_id": 0, "arguments": [0]}] * 3
        results["story"] = {"word_perplexity,none": 20.0 if lm == "whole" else 30.0, "word_perplexity_stderr,none": "N/A"}
        return {"samples": samples, "results": results}

    monkeypatch.setattr("moescope.study.choice_tasks.run_tasks", harness)
    models: Any = {"whole": "whole", "pruned": "pruned"}
    every = task_table(models, ("known", "coin", "story"), include=None, limit=None, seed=0)
    table = every[every["metric"] == "acc"].set_index("task")
    assert table["used"].to_dict() == {"known": True, "coin": False}
    assert table.loc["known", ["chance", "whole", "pruned", "change"]].tolist() == [0.5, 1.0, 0.75, -0.25]
    known, coin, story = verdicts(task_cases(every, "whole", "pruned"))
    others = every[every["metric"] != "acc"]
    assert others["metric"].tolist() == ["acc_norm", "acc_norm", "word_perplexity"]
    assert not others["used"].any()
    assert (story.measured, story.outcome) == (30.0, "not tested")
    assert story.words.endswith("what guessing would give is not known; the whole model 20")
    assert known.outcome == "contradicted"
    assert (coin.outcome, coin.words[:44]) == ("not tested", "left out: the whole model does not beat chan")


@pytest.mark.slow
def test_one_run_of_the_evaluation_harness(tmp_path: Path) -> None:
    """A local task over a JSON file, offline."""
    pytest.importorskip("lm_eval")
    pairs = [("The sky is", " blue", " bread"), ("He opened the", " door", " seven")] * 6
    tasks = write_task(tmp_path, pairs)
    layered, _ = tiny()
    models = {name: harness_model(layered, 2048) for name in ("whole", "pruned")}
    table = task_table(models, ("tiny_pairs",), include=tasks, limit=None, seed=0)
    assert table["whole"].tolist() == table["pruned"].tolist()
    assert table["n"].tolist() == [12]
