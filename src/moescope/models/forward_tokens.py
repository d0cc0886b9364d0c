"""How many tokens a model was given to read: the cost of a study, counted where the model runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from moescope.models.load import LoadedModel
from moescope.models.past import past_of
from moescope.types import Site


class ForwardTokens:
    """Counts forward tokens by what they were for.

    One token that runs through all layers is one forward token. Padding does not count, nor what a key-value cache holds
    already; a pass that starts late or stops early counts the share of the layers that it ran.

    >>> tokens = ForwardTokens()
    >>> tokens.totals()
    {}
    """

    def __init__(self) -> None:
        self.counts: list[tuple[str, float]] = []
        """purpose and tokens, as they were counted"""

    def totals(self) -> dict[str, int]:
        """Forward tokens by purpose, in the order in which the purposes were first named."""
        purposes = dict.fromkeys(purpose for purpose, _ in self.counts)
        return {name: round(sum(count for purpose, count in self.counts if purpose == name)) for name in purposes}

    def exactly(self, purpose: str) -> float:
        """Forward tokens of one purpose, shares of a pass not rounded."""
        return sum(count for one, count in self.counts if one == purpose)

    def add(self, purpose: str, tokens: float) -> None:
        """Tokens that are known without a model's run."""
        self.counts.append((purpose, tokens))

    @contextmanager
    def of(self, model: LoadedModel, purpose: str) -> Iterator[None]:
        """Count whatever ``model`` runs inside the block for ``purpose``, in this process and for it in others."""
        self.add(purpose, 0.0)
        entry = body_entry(model)
        layers = [model.tap_point(Site("resid", layer)).module for layer in range(model.n_layers)]
        own = [vars(layer).get("forward") for layer in layers]
        tokens, ran = 0, 0.0

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal tokens
            tokens = _real_tokens(called_with(module, args, kwargs))

        def layer_runs(number: int) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
                nonlocal ran
                # a layer whose forward was replaced meanwhile (`moescope.intervene.resume`) computes nothing
                if vars(module).get("forward") is own[number]:
                    ran += tokens / len(layers)

            return hook

        with ExitStack() as hooks:
            if model.spread is not None:
                count = partial(self.add, purpose)
                model.spread.counters.append(count)
                hooks.callback(model.spread.counters.remove, count)
            hooks.callback(entry.register_forward_pre_hook(begin, with_kwargs=True).remove)
            for number, layer in enumerate(layers):
                hooks.callback(layer.register_forward_pre_hook(layer_runs(number)).remove)
            try:
                yield
            finally:
                self.add(purpose, ran)


def body_entry(model: LoadedModel) -> nn.Module:
    """The innermost module around the layers that is given token ids and attention mask.

    Usually the body; OPT's causal LM passes its body by and calls the decoder inside it.
    """
    first = model.tap_point(Site("resid", 0)).module
    found = model.body
    for module in model.body.modules():  # outer before inner
        wants = inspect.signature(module.forward).parameters
        if {"input_ids", "attention_mask"} <= wants.keys() and any(m is first for m in module.modules()):
            found = module
    return found


def called_with(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """What a module's forward was called with, by name."""
    return inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments if args else kwargs


def _real_tokens(arguments: Mapping[str, Any]) -> int:
    ids = arguments.get("input_ids")
    if ids is None:
        ids = arguments.get("inputs_embeds")
    if ids is None:
        return 0
    rows, length = ids.shape[:2]
    mask = arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or len(mask) != rows or mask.shape[1] < length:
        return int(rows * length)
    cache = past_of(arguments)
    past = 0 if cache is None else int(cache.get_seq_length())
    start = past if mask.shape[1] >= past + length else mask.shape[1] - length
    return int(mask[:, start : start + length].bool().sum())
