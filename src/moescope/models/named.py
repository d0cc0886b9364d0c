"""Any module of a model as a site, by its name: what it returns, where that is one vector for each token.

``layers.3.mlp.act_fn`` is ``layers.*.mlp.act_fn`` in layer 3. A module outside the layers counts to the layer that ran last
before it, or to the first. What such a module is, and how wide, is seen by running the model on a few random tokens: nothing is
guessed from its class. A module that returns the very tensor of a site that has a name already is that site, so that what is
known of the stream (that it is carried on) is not forgotten by calling it otherwise.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.models.batching import ordinary_ids
from moescope.models.inputs import BodyInputs, Runs
from moescope.models.taps import Structure, TapPoint
from moescope.types import MODULE, Site

_ROWS, _TOKENS = 2, (12, 7)  # what is as wide as a text is long is no vector of a token


class HasModules(Runs, Protocol):
    """A model, as far as its modules go."""

    @property
    def name(self) -> str: ...
    @property
    def named(self) -> nn.Module: ...
    @property
    def structure(self) -> Structure: ...
    @property
    def reads_images(self) -> bool: ...


def named_taps(model: HasModules, name: str) -> dict[Site, TapPoint]:
    """The modules that ``name`` names, by site, in the order of their layers.

    Args:
        name: as ``model.named.named_modules()`` gives it, or with ``*`` in place of a layer's number: in every layer that
            has it.

    Raises:
        InputError: there is none (says which are near), one does not run, runs more than once in a pass, or gives something
            else than one vector a token.
    """
    found = _places(model, name)
    runs = [_watched(model, [module for _, module in found], tokens) for tokens in _lengths(model)]
    taps: dict[Site, TapPoint] = {}
    for (kind, module), *seen in zip(found, *runs, strict=True):
        width = _width(f"{kind.removeprefix(MODULE)} of {model.name}", seen)
        run = seen[0]
        known = _known(model, run)
        site = Site(kind, run.layer) if known is None else known
        point = TapPoint(site, module, "output", width, next(iter(model.structure.taps.values())).shape)
        taps[site] = point if known is None else model.structure.taps[known]
    return taps


class _Run:
    """What one module did in one pass."""

    def __init__(self, rows: int, tokens: int) -> None:
        self.shape = (rows, tokens)
        self.given: list[Any] = []
        self.layer = 0
        self.same: list[Site] = []
        """sites that are the tensor that it gave"""


def _places(model: HasModules, name: str) -> list[tuple[str, nn.Module]]:
    """(kind of site, module) of each module of that name."""
    parts = {part: module for part, module in model.named.named_modules() if part}
    at = {id(layer): number for number, layer in enumerate(model.structure.layers)}
    layers = {part: at[id(module)] for part, module in parts.items() if id(module) in at}
    found: dict[str, str] = {}
    for layer in layers:
        starred = ".".join([*layer.split(".")[:-1], "*"])
        for part in parts:
            if part == layer or part.startswith(f"{layer}."):
                found[part] = starred + part[len(layer) :]
    wanted = [part for part in parts if name in (part, found.get(part))]
    if not wanted:
        every = [*dict.fromkeys(found.values()), *parts]
        near = difflib.get_close_matches(name, every, n=3, cutoff=0.3) or every[:3]
        raise InputError(f"{model.name} has no module {name!r}; near are {', '.join(near)}", "site")
    return [(MODULE + found.get(part, part), parts[part]) for part in wanted]


def _lengths(model: HasModules) -> Sequence[int]:
    return (model.tokenizer.places,) if model.reads_images else _TOKENS


def _watched(model: HasModules, modules: Sequence[nn.Module], tokens: int) -> list[_Run]:
    """Run the model's body once and see what each module gives, in which layer, and whether a site is the same tensor."""
    runs = [_Run(_ROWS, tokens) for _ in modules]
    begun = 0
    sites: list[tuple[Site, Tensor, Tensor]] = []  # with its values: a tensor can be written over

    def begin(*_: Any) -> None:
        nonlocal begun
        begun += 1

    def saw(site: Site) -> Any:
        return lambda tensor: sites.append((site, tensor, tensor.clone()))

    def gave(run: _Run) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = _first(output)
            run.given.append(output if tensor is None else (tensor, tensor.clone()))
            run.layer = max(begun - 1, 0)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for layer in model.structure.layers:
            stack.callback(layer.register_forward_pre_hook(begin).remove)
        for site, point in model.structure.taps.items():
            if site.kind != "router":
                stack.callback(point.attach(saw(site)).remove)
        for module, run in zip(modules, runs, strict=True):
            stack.callback(module.register_forward_hook(gave(run)).remove)
        _forward(model, tokens)
    for run in runs:
        if len(run.given) == 1 and isinstance(run.given[0], tuple):
            tensor, values = run.given[0]
            if not tensor.is_meta:
                run.same = [site for site, other, held in sites if _is(tensor, values, other, held)]
    return runs


def _forward(model: HasModules, tokens: int) -> None:
    if model.reads_images:
        encoder: Any = model.named
        weight = next(encoder.parameters())
        images = torch.cat([model.tokenizer.blank(shade) for shade in (100, 150)])
        encoder(pixel_values=images.to(weight.device, weight.dtype))
        return
    ids = ordinary_ids(model, _ROWS * tokens).view(_ROWS, tokens)
    model.body(**BodyInputs(model)(ids, None))


def _is(tensor: Tensor, values: Tensor, other: Tensor, held: Tensor) -> bool:
    """Whether two hooks were given one tensor, in the same state, flattened or not."""
    one = tensor.data_ptr() == other.data_ptr() and tensor.numel() == other.numel()
    return one and torch.equal(values.reshape(-1), held.reshape(-1))


def _known(model: HasModules, run: _Run) -> Site | None:
    """The stream before what is added to it, should both be the same."""
    order = ("resid", "embed")
    return min(run.same, key=lambda site: order.index(site.kind) if site.kind in order else len(order), default=None)


def _width(name: str, runs: Sequence[_Run]) -> int:
    widths = set()
    for run in runs:
        if not run.given:
            raise InputError(f"{name} does not run when the model does (a list of modules never does); name another", "site")
        if len(run.given) > 1:
            raise InputError(f"{name} runs {len(run.given)} times in one pass; name a module that runs once", "site")
        tensor = run.given[0][0] if isinstance(run.given[0], tuple) else None
        shape = () if tensor is None else tuple(tensor.shape)
        rows, tokens = run.shape
        whole = len(shape) == 3 and shape[:2] == run.shape
        flat = len(shape) == 2 and shape[0] == rows * tokens
        if tensor is None or not (whole or flat):
            raise InputError(f"{name} gives {shape or 'no tensor'} of {rows} × {tokens} tokens: not a vector of each", "site")
        widths.add(shape[-1])
    if len(widths) > 1:
        raise InputError(f"{name} gives as many numbers as there are tokens: not a vector of each; name another", "site")
    return int(widths.pop())


def _first(output: Any) -> Tensor | None:
    """The tensor that a tap at a module's output picks: itself, or the first of floating point."""
    members = output if isinstance(output, tuple | list) else (output,)
    return next((m for m in members if isinstance(m, Tensor) and m.is_floating_point()), None)
