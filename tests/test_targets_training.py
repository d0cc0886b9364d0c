"""A fine-tuning with the callback that counts its experts' load, and adapters for chosen experts alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

import moescope
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.runtime.targets import Domain, Targets, expert_parameters, load_targets, train_only
from tests.architectures import tiny_model

peft = pytest.importorskip("peft")


def tiny(name: str) -> LoadedModel:
    model = tiny_model(name, head=True)
    model.module.requires_grad_(True)
    return model


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Sixteen made-up texts of eight tokens, the last two of which are padding."""

    def __init__(self, vocabulary: int) -> None:
        self.ids = torch.from_numpy(np.random.default_rng(0).integers(3, vocabulary, (16, 8)))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: int) -> dict[str, Any]:
        mask = torch.ones(8, dtype=torch.long)
        mask[6:] = 0
        return {"input_ids": self.ids[at], "labels": self.ids[at], "attention_mask": mask}


def trained(module: torch.nn.Module, folder: Path, callback: moescope.RoutingCallback | None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    arguments = TrainingArguments(
        str(folder), max_steps=4, per_device_train_batch_size=4, logging_steps=2, report_to=[], seed=0, use_cpu=True,
        disable_tqdm=True, save_strategy="no", **options,
    )  # fmt: skip
    data = Rows(int(module.config.vocab_size))  # type: ignore[union-attr, arg-type]
    trainer = Trainer(module, arguments, train_dataset=data, callbacks=[callback] if callback else None)
    trainer.train()
    return trainer


def hooks(module: torch.nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules())


def test_the_load_stands_in_the_log_and_the_loss_stays(tmp_path: Path) -> None:
    model = tiny("olmoe")
    start = copy.deepcopy(model.module)
    before = hooks(start)
    plain = trained(copy.deepcopy(start), tmp_path, None)
    callback = moescope.RoutingCallback()
    trainer = trained(start, tmp_path, callback)
    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (plain, trainer)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    for a, b in zip(plain.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert hooks(start) == before
    row = next(row for row in trainer.state.log_history if "loss" in row)
    layers = list(callback.history[0]["counts"])
    chosen = int(model.config.num_experts_per_tok)
    for layer in layers:
        counts = np.array(callback.history[0]["counts"][layer])
        assert counts.sum() == 2 * 4 * 6 * chosen  # steps, rows, tokens without padding
        load = counts / counts.sum()
        assert row[f"experts/layer_{layer}/max_load"] == pytest.approx(load.max() * len(load))
        assert row[f"experts/layer_{layer}/dead"] == (counts == 0).sum()
        seen = load[load > 0]
        assert row[f"experts/layer_{layer}/entropy"] == pytest.approx(-(seen * np.log(seen)).sum() / np.log(len(load)))
    assert row["experts/dead"] == sum(row[f"experts/layer_{layer}/dead"] for layer in layers)


def test_dead_experts_are_counted_and_a_recomputed_pass_is_not(tmp_path: Path) -> None:
    model = tiny("olmoe")
    for name, weight in model.module.named_parameters():
        if name.endswith("gate.weight"):  # all experts alike, so that the first few are always chosen
            weight.data.zero_()
            weight.requires_grad_(False)
    callback = moescope.RoutingCallback()
    trainer = trained(model.module, tmp_path, callback, gradient_checkpointing=True)
    row = next(row for row in trainer.state.log_history if "loss" in row)
    chosen, n = int(model.config.num_experts_per_tok), int(model.config.num_experts)
    first = next(iter(callback.history[0]["counts"]))
    assert row[f"experts/layer_{first}/dead"] == n - chosen
    assert row[f"experts/layer_{first}/max_load"] == pytest.approx(n / chosen)
    assert sum(callback.history[0]["counts"][first]) == 2 * 4 * 6 * chosen


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is dense"):
        trained(tiny("llama").module, tmp_path, moescope.RoutingCallback())


def test_loggers_of_the_trainer_get_the_figures_where_it_is_first(tmp_path: Path) -> None:
    model = tiny("olmoe")
    callback = moescope.RoutingCallback()
    trainer = trained(model.module, tmp_path, callback)
    assert trainer.callback_handler.callbacks[0] is not callback
    callback.put_first(trainer)
    assert trainer.callback_handler.callbacks[0] is callback
    assert trainer.callback_handler.callbacks.count(callback) == 1


def planned(model: LoadedModel) -> Targets:
    names = expert_parameters(model)
    layers = {str(n): int(model.config.num_experts) for n in names}
    last = max(names)
    return Targets(
        model.name, model.fingerprint, layers, {"code": Domain({str(last): [1]}, names[last]), "none": Domain({}, [])}, rank=2
    )


def test_a_saved_configuration_adapts_the_layers_that_it_names(tmp_path: Path) -> None:
    model = tiny("olmoe")
    targets = planned(model)
    targets.write(tmp_path)
    assert load_targets(tmp_path) == targets
    known = dict(model.module.named_parameters())
    for name in targets.domains["code"].target_parameters:  # each names one parameter of the whole model
        assert sum(full.endswith(f".{name}") for full in known) == 1
    config = peft.LoraConfig.from_pretrained(str(tmp_path / "lora" / "code"))
    wrapped = peft.get_peft_model(copy.deepcopy(model.module), config)
    adapted = {name.split("layers.")[1].split(".")[0] for name, p in wrapped.named_parameters() if p.requires_grad}
    assert adapted == set(targets.domains["code"].experts)
    with pytest.raises(InputError, match="no expert carries it"):
        targets.lora_config("none")
    assert not (tmp_path / "lora" / "none").exists()
    (tmp_path / "targets.json").write_text((tmp_path / "targets.json").read_text().replace('"rank": 2', '"rank": 3'))
    with pytest.raises(InputError, match="is damaged"):
        load_targets(tmp_path)


def test_single_experts_of_a_stack_are_trained_alone(tmp_path: Path) -> None:
    model = tiny("olmoe")
    targets = planned(model)
    config = peft.LoraConfig(**targets.lora_config("code"))
    wrapped = peft.get_peft_model(copy.deepcopy(model.module), config)
    with train_only(wrapped, targets, "code"):
        trained(wrapped, tmp_path, moescope.RoutingCallback(), weight_decay=0.1, learning_rate=1e-2)
    stacks = [m for m in wrapped.modules() if type(m).__name__ == "ParamWrapper"]
    assert stacks
    for stack in stacks:
        moved = stack.get_delta_weight("default").detach().flatten(1).abs().amax(1)
        assert moved[1] > 0
        assert (np.delete(moved.numpy(), 1) == 0).all()
    with pytest.raises(InputError, match="trained already"), train_only(wrapped, targets, "code"):
        pass
    with pytest.raises(InputError, match="no parameter of stacked experts"), train_only(model.module, targets, "code"):
        pass
