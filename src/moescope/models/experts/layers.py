"""The mixture-of-experts layers of a model, each with the rule that reads its dispatch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import nn

from moescope.errors import InputError
from moescope.models.experts.rules import RULES, Rule

if TYPE_CHECKING:
    from moescope.models import LoadedModel

# towers that text never enters, and heads that predict further tokens and do not run in an ordinary pass
_ASIDE = re.compile(r"(^|\.)(vision\w*|visual\w*|audio\w*|image\w*|speech\w*|sam_\w*|talker|mtp\w*)(\.|$)")

# their attention pools windows of tokens without heed to the padding mask, which left padding shifts
_POOLS_PADDING = frozenset({"deepseek_v4"})

COUNT_FIELDS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
    "n_experts",
)
"""by which configs say how many experts a layer has"""


@dataclass(frozen=True, eq=False)
class ExpertLayer:
    """A mixture-of-experts layer."""

    layer: int
    """the layer's number in the model, dense layers counted"""
    path: str
    """name, in the model's body, of the module that the rule listens to"""
    module: nn.Module
    router: nn.Module | None
    """the module that scores the experts, where one was found"""
    n_experts: int
    rule: Rule

    @property
    def expert_bytes(self) -> int | None:
        """Bytes of one expert's weights as they are loaded; None where they are not stacked, or packed."""
        stacked = [p for p in self.module.parameters() if p.dim() > 1 and len(p) == self.n_experts and p.is_floating_point()]
        if not any(p.dim() > 2 for p in stacked):
            return None
        return sum(p.numel() * p.element_size() for p in stacked) // self.n_experts

    def __str__(self) -> str:
        return f"layer {self.layer} ({self.path}, {type(self.module).__name__})"


def expert_layers(model: LoadedModel) -> tuple[ExpertLayer, ...]:
    """The mixture-of-experts layers of a model, ascending.

    Raises:
        InputError: the model is dense, two stacks of layers have experts, or a layer's experts are called in a way that is
            not known here.
    """
    layers = find_layers(model.body, model.name)
    if not layers:
        raise InputError(f"model {model.name} is dense: it has no experts to trace; study it with `moescope circuits`")
    return layers


_FOUND: WeakKeyDictionary[nn.Module, tuple[ExpertLayer, ...]] = WeakKeyDictionary()
"""of each body: the search takes as long as a token of a small model"""


def find_layers(body: nn.Module, name: str = "model") -> tuple[ExpertLayer, ...]:
    """As :func:`expert_layers`, of a bare module; empty where it is dense."""
    found = _FOUND.get(body, ())
    if not found or not all(_is_at(body, layer) for layer in found):
        found = _FOUND[body] = _searched(body, name)
    return found


def _is_at(body: nn.Module, layer: ExpertLayer) -> bool:
    try:
        return body.get_submodule(layer.path) is layer.module
    except AttributeError:
        return False


def _searched(body: nn.Module, name: str) -> tuple[ExpertLayer, ...]:
    modules = dict(body.named_modules())
    found: list[ExpertLayer] = []
    taken: list[str] = []
    for path, module in modules.items():
        number = re.search(r"(?:^|\.)(\d+)\.", path + ".")
        if number is None or _ASIDE.search(path) or any(path.startswith(f"{outer}.") for outer in taken):
            continue
        rule = next((rule for rule in RULES if rule.applies(module)), None)
        if rule is None:
            continue
        taken.append(path)
        found.append(ExpertLayer(int(number[1]), path, module, _router(path, modules), rule.n_experts(module), rule))
    for path, module in modules.items():
        if _is_bank(path, module) and not any(path == outer or path.startswith(f"{outer}.") for outer in taken):
            hint = ""
            if "mxfp4" in type(module).__name__.lower():
                hint = "; its kernels choose by themselves: load it with Mxfp4Config(dequantize=True)"
            raise InputError(
                f"model {name}, {path}: {type(module).__name__} holds experts, but how it is told which to use is not known"
                f" to moescope{hint}"
            )
    found.sort(key=lambda layer: layer.layer)
    for first, second in itertools.pairwise(found):
        if first.layer == second.layer:
            raise InputError(
                f"model {name} has two stacks of layers with experts ({first.path} and {second.path}), which is not supported"
            )
    return tuple(found)


def mixes_tokens(model: LoadedModel, layers: Sequence[ExpertLayer]) -> bool:
    """Whether routing depends on what else is in the batch, padding included, so that sequences must be run one by one."""
    return model.config.model_type in _POOLS_PADDING or any(layer.rule.mixes_tokens for layer in layers)


def _is_bank(path: str, module: nn.Module) -> bool:
    """Whether a module looks like a bank of routed experts."""
    if not path.endswith("experts") or "shared" in path or _ASIDE.search(path) or not re.search(r"(^|\.)\d+\.", path):
        return False
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return len(module) > 1
    return any(parameter.dim() == 3 and len(parameter) > 1 for parameter in module.parameters(recurse=False))


def _router(path: str, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The gate or router that is part of the module at ``path``, or hangs beside it."""
    for place in (path, path.rpartition(".")[0]):
        for name, child in modules[place].named_children():
            if re.fullmatch(r"gate|\w*router(_gate)?", name):
                return child
    return None
