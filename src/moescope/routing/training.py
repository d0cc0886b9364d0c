"""How a mixture's load goes while it is trained: a callback for transformers' Trainer that counts and does nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from moescope.errors import InputError
from moescope.models.experts.layers import find_layers
from moescope.models.forward_tokens import called_with
from moescope.routing.load import entropy, shares


class RoutingCallback(TrainerCallback):
    """Add each layer's load to what a Trainer logs: ``trainer = Trainer(..., callbacks=[RoutingCallback()])``.

    Of the tokens since the last log, padding left out: ``experts/max_load``, the busiest expert's share over a fair one;
    ``experts/entropy``, that of the shares over its largest value; ``experts/dead``, experts that received no token; all layers
    together (largest, mean, sum), and ``experts/layer_3/…`` each. They stand in ``trainer.state.log_history``; loggers that
    the Trainer makes itself (``report_to``) run before its callbacks and see them where this one is put first, by
    :meth:`put_first`.

    Nothing of the training changes: hooks read which experts were called, and go when it ends. An activation that is computed
    again for the backward pass is not counted again; an evaluation is not counted.

    Raises:
        InputError: when training begins: the model has no experts.
    """

    def __init__(self) -> None:
        self.counts: dict[int, Tensor] = {}
        """true layer number -> int64 (E,): tokens since the last log"""
        self.history: list[dict[str, Any]] = []
        """of every log: its step and, by layer, the counts as lists"""
        self._handles: list[RemovableHandle] = []
        self._mask: Tensor | None = None
        self._counting = False

    def put_first(self, trainer: Any) -> None:
        """Run before the Trainer's own callbacks, so that the loggers of ``report_to`` get the figures too."""
        callbacks = trainer.callback_handler.callbacks
        if self in callbacks:
            callbacks.remove(self)
        callbacks.insert(0, self)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        assert model is not None
        layers = find_layers(model, type(model).__name__)
        if not layers:
            raise InputError(f"{type(model).__name__} is dense: it has no experts whose load could be counted", "model")
        self._remove()
        self._handles += [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end),
        ]
        for layer in layers:
            self.counts[layer.layer] = torch.zeros(layer.n_experts, dtype=torch.int64)
            self._handles += layer.rule.listen(layer.module, self._counter(layer.layer, layer.n_experts))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        # a log of an evaluation, or the summary at the end
        if logs is None or "loss" not in logs or not any(bool(n.any()) for n in self.counts.values()):
            return
        figures = self.figures()
        logs.update(figures)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(figures)
        by_layer = {layer: n.tolist() for layer, n in self.counts.items()}
        self.history.append({"step": int(state.global_step), "counts": by_layer})
        for layer, n in self.counts.items():
            self.counts[layer] = torch.zeros_like(n)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._remove()

    def figures(self) -> dict[str, float]:
        """What is logged, of the tokens counted so far."""
        found: dict[str, float] = {}
        for layer, n in self.counts.items():
            load = shares(n.cpu().numpy())
            found[f"experts/layer_{layer}/max_load"] = float(load.max() * len(load))
            found[f"experts/layer_{layer}/entropy"] = float(entropy(load) / max(math.log(len(load)), 1e-12))
            found[f"experts/layer_{layer}/dead"] = float((load == 0).sum())

        def over(name: str) -> list[float]:
            return [value for key, value in found.items() if key.endswith(f"/{name}")]

        total = {
            "experts/max_load": max(over("max_load")),
            "experts/entropy": sum(over("entropy")) / len(self.counts),
            "experts/dead": sum(over("dead")),
        }
        return total | found

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = called_with(module, args, kwargs).get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        # what is recomputed for the backward pass runs outside the model's own forward
        self._counting = module.training

    def _end(self, *_: Any) -> None:
        self._counting, self._mask = False, None

    def _counter(self, layer: int, n_experts: int) -> Callable[[Tensor, Tensor, Tensor], None]:
        @torch.no_grad()
        def count(hidden: Tensor, ids: Tensor, weights: Tensor) -> None:
            if not self._counting:
                return
            if self._mask is not None and self._mask.numel() == len(ids):
                ids = ids[self._mask.flatten().to(ids.device, torch.bool)]
            ids = ids.detach().long()
            used = ids[(ids >= 0) & (ids < n_experts)]
            here = torch.bincount(used, minlength=n_experts)
            self.counts[layer] = self.counts[layer].to(here.device) + here

        return count

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
