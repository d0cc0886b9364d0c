"""What to fine-tune, as files: which experts, and the parameters that hold them, in the words of PEFT.

PEFT's ``target_parameters`` adapts a whole parameter: of experts that a layer keeps stacked in one tensor (nearly all of
transformers 5) it adapts all, so that layers can be chosen by it and single experts cannot. For single ones
:func:`train_only` holds the rest of such an adapter at nought.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.files.parse import parse_object
from moescope.files.remote import local
from moescope.files.seal import seal_holds, sealed_json
from moescope.models.experts import expert_layers
from moescope.study.settings import read_record

if TYPE_CHECKING:
    from moescope.models import LoadedModel

FORMAT = "moescope-targets-1"
FILE, ADAPTER = "targets.json", "adapter_config.json"


@dataclass(frozen=True)
class Domain:
    """What one category's text is carried by."""

    experts: dict[str, list[int]]
    """true layer number, as text, -> experts; none where no expert carries it"""
    target_parameters: list[str]
    """the parameters that hold them, and all other experts of their layers; none where the model was not at hand"""


@dataclass(frozen=True)
class Targets:
    """Experts to fine-tune by category, and those that the text did not reach.

    ``domains`` has an entry ``"all"`` for every layer with experts, which needs no choice.
    """

    model: str
    fingerprint: str | None
    n_experts: dict[str, int]
    """true layer number, as text, -> experts of it"""
    domains: dict[str, Domain]
    unreached: dict[str, list[int]] = field(default_factory=dict)
    """layer -> experts that received fewer tokens than were asked for"""
    rank: int = 16

    def write(self, folder: Path, /) -> Path:
        """Write ``targets.json``, and for each category with parameters ``lora/NAME/adapter_config.json``, which
        ``peft.LoraConfig.from_pretrained`` reads."""
        content = {"format": FORMAT, **_plain(self)}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / FILE, sealed_json(content))
        for name, place in self.places().items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / place, [(json.dumps(self.lora_config(name), indent=2) + "\n").encode()])
        return folder

    def places(self) -> dict[str, str]:
        """Category -> where in the folder the configuration of its adapter stands."""
        found: dict[str, str] = {}
        for name, domain in self.domains.items():
            if domain.target_parameters:
                plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:80] or "_"
                taken = [p for p in found.values() if p.startswith(f"lora/{plain}/") or p.startswith(f"lora/{plain}.")]
                found[name] = f"lora/{plain}{f'.{len(taken)}' if taken else ''}/{ADAPTER}"
        return found

    def lora_config(self, name: str = "all") -> dict[str, Any]:
        """The fields of a ``peft.LoraConfig`` of a category: ``LoraConfig(**targets.lora_config("code"))``.

        Dropout, bias and DoRA stay off, which parameters cannot have.

        Raises:
            InputError: no such category, or nothing of it can be adapted.
        """
        domain = self._domain(name)
        if not domain.target_parameters:
            why = "no expert carries it" if not domain.experts else "the model was not at hand, so its parameters are not known"
            raise InputError(f"nothing to adapt for {name!r}: {why}", "name")
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.model,
            "r": self.rank,
            "lora_alpha": 2 * self.rank,
            "lora_dropout": 0.0,
            "target_modules": [],
            "target_parameters": list(domain.target_parameters),
        }

    def _domain(self, name: str) -> Domain:
        if name not in self.domains:
            raise InputError(f"{name!r} is none of {', '.join(self.domains)}", "name")
        return self.domains[name]


def load_targets(folder: str | Path) -> Targets:
    """Read what :meth:`Targets.write` wrote.

    Raises:
        InputError: it is missing or damaged.
    """
    path = local(folder) / FILE
    wrong = InputError(f"{path}: is damaged, or not what moescope targets saves; run it again")
    try:
        content = parse_object(path.read_bytes())
        if content.pop("format", None) != FORMAT or not seal_holds(path):
            raise wrong
        content.pop("seal", None)
        domains = {name: read_record(Domain, domain) for name, domain in content.pop("domains").items()}
        found = read_record(Targets, {**content, "domains": domains})
        _check(found)
        return found
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except InputError as error:
        raise error if error is wrong else InputError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise wrong from error


def expert_parameters(model: LoadedModel) -> dict[int, list[str]]:
    """True layer number -> names, from the model's body on, of the parameters in which its experts are stacked.

    A name is the end of the full one, as ``target_parameters`` takes it, whatever the body is called in the whole model.

    Raises:
        InputError: the model is dense.
    """
    found = {}
    for layer in expert_layers(model):
        stacks = [name for name, parameter in layer.module.named_parameters() if parameter.dim() == 3 and len(parameter) > 1]
        found[layer.layer] = [f"{layer.path}.{name}" for name in stacks]
    return found


@contextmanager
def train_only(model: nn.Module, targets: Targets, name: str) -> Iterator[list[str]]:
    """Inside the block an adapter of ``targets.lora_config(name)`` learns for the chosen experts alone.

    What PEFT adds to expert e of a stack is made from rows of ``lora_A`` and columns of ``lora_B`` that are e's own, and begins
    at nought. Here the gradients of the other experts' are nought, so that what is added to them stays nought: an optimiser's
    decay of a nought is nought.

    Args:
        model: a ``peft.PeftModel``, its adapter as it was made: not yet trained.

    Yields:
        the names of the parameters that are held.

    Raises:
        InputError: no such category, or the model has no such adapter.
    """
    chosen = targets._domain(name).experts
    handles, held = [], []
    try:
        for path, module in model.named_modules():
            if type(module).__name__ != "ParamWrapper":
                continue
            layer = next((n for n in targets.n_experts if f".{n}." in f".{path}."), None)
            count = int(module.num_experts)
            if layer is None or count < 2:
                continue
            keep = torch.zeros(count)
            keep[chosen.get(layer, [])] = 1
            wrapper: Any = module
            for key in wrapper.lora_A:
                a, b = wrapper.lora_A[key].weight, wrapper.lora_B[key].weight
                if bool(b.detach().any()):
                    raise InputError(f"{path}: its adapter was trained already; make it anew", "model")
                rank = len(a) // count
                # as ParamWrapper folds them: A is (experts, rank, in), B is (out, rank, experts)
                for side, weight, mask in (("A", a, keep.repeat_interleave(rank)[:, None]), ("B", b, keep.repeat(rank)[None])):
                    handles.append(weight.register_hook(_masked(mask)))
                    held.append(f"{path}.lora_{side}.{key}.weight")
        if not held:
            raise InputError(f"no parameter of stacked experts is adapted; make it with lora_config({name!r})", "model")
        yield held
    finally:
        for handle in handles:
            handle.remove()


def _check(targets: Targets) -> None:
    """Raise ValueError unless every expert that is named is one of its layer's."""
    if not all(type(n) is int and n > 0 and layer.isdecimal() for layer, n in targets.n_experts.items()):
        raise ValueError("n_experts is no table of numbers by layer")
    for experts in (targets.unreached, *(domain.experts for domain in targets.domains.values())):
        for layer, numbers in experts.items():
            if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < targets.n_experts[layer] for n in numbers):
                raise ValueError(f"layer {layer} names experts that are not there")
    if not all(isinstance(name, str) for domain in targets.domains.values() for name in domain.target_parameters):
        raise ValueError("a parameter's name is no text")


def _masked(mask: Tensor) -> Any:
    return lambda gradient: gradient * mask.to(gradient)


def _plain(targets: Targets) -> dict[str, Any]:
    domains = {name: {"experts": d.experts, "target_parameters": d.target_parameters} for name, d in targets.domains.items()}
    return {
        "model": targets.model,
        "fingerprint": targets.fingerprint,
        "n_experts": targets.n_experts,
        "domains": domains,
        "unreached": targets.unreached,
        "rank": targets.rank,
    }
