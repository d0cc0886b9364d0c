"""Every site of a model held against what the model computes on random tokens.

- ``embed`` is what the first layer is given and ``resid`` what the next one is; both are the ``hidden_states`` that the model
  reports: ``embed:0`` is entry 0, ``resid:L`` entry L + 1, but for the last entry, which is after the final norm.
- What a layer adds to the stream is its ``attn_out`` and ``mlp_out``, each as it is, scaled, or normalised (and in BERT's
  manner, where the sum is what is normalised); where no such sum is found, nothing passes between tokens but by these.
- ``mlp_out`` at a token depends on ``mlp_in`` at that token alone, and on nothing but ``mlp_act`` where there is one, which is
  as wide as the config says.
- Each site replaced by itself changes nothing.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moescope.models.batching import SIDES, measure, ordinary_ids
from moescope.models.inputs import BodyInputs
from moescope.models.load import LoadedModel
from moescope.types import Site

TOLERANCE = 1e-4
"""largest accepted error, relative to the largest value compared"""
_PARTS = ("attn_out", "mlp_in", "mlp_out")
_INNER = (
    "intermediate_size",
    "ffn_dim",
    "n_inner",
    "ffn_hidden_size",
    "feed_forward_size",
    "d_ff",
    "d_inner",
    "hidden_dim",
    "dff",
)


class Misread(Exception):
    """A site holds something else than its name says."""


Edit = Callable[[Tensor], Tensor | None]


class Probe:
    """A model on one batch of random tokens, as it is and under edits."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        ids = ordinary_ids(model, 24).view(2, 12)
        self._inputs = BodyInputs(model)(ids, None)
        self.entries: dict[int, Tensor] = {}
        """what each layer is given"""
        self.mixers: dict[int, dict[str, Tensor]] = {}
        """by layer, what its children give that are of the stream's shape"""
        with ExitStack() as stack:
            for number, layer in enumerate(model.structure.layers):
                stack.callback(layer.register_forward_pre_hook(self._enters(number), with_kwargs=True).remove)
                for name, child in layer.named_children():
                    stack.callback(child.register_forward_hook(self._mixes(number, name)).remove)
            self.seen, self.output = self.run(model.sites(), output_hidden_states=True)

    def _enters(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            if isinstance(given, Tensor):
                self.entries[layer] = given.clone()

        return hook

    def _mixes(self, layer: int, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            given = output[0] if isinstance(output, tuple) else output
            if isinstance(given, Tensor) and given.dim() == 3 and given.shape[-1] == self.model.d_model:
                self.mixers.setdefault(layer, {})[name] = given.clone()

        return hook

    def run(
        self, read: Sequence[Site], edits: Mapping[Site, Edit] | None = None, **options: Any
    ) -> tuple[dict[Site, Tensor], Any]:
        """The tensors at ``read`` and the body's output, with ``edits`` made before anything is read."""
        seen: dict[Site, Tensor] = {}

        def keep(site: Site) -> Edit:
            return lambda tensor: seen.__setitem__(site, tensor.clone())

        with ExitStack() as stack, torch.no_grad():
            for site, edit in (edits or {}).items():
                stack.callback(self.model.tap_point(site).attach(edit).remove)
            for site in read:
                stack.callback(self.model.tap_point(site).attach(keep(site)).remove)
            body: Any = self.model.body
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(body.forward).parameters.values()):
                options = {key: value for key, value in options.items() if key in inspect.signature(body.forward).parameters}
            output = body(**self._inputs, **options)
        missing = [site for site in read if site not in seen]
        if missing:
            raise Misread(f"{missing[0]} was not reached")
        return seen, output

    def check_stream(self) -> None:
        """``embed`` and ``resid`` are what passes between the layers, and what ``hidden_states`` are."""
        n = self.model.n_layers
        stream = [self.seen[Site("embed", 0)], *(self.seen[Site("resid", layer)] for layer in range(n))]
        for layer, given in self.entries.items():
            _same(stream[layer], given, f"{_before(layer)} and what layer {layer} is given")
        hidden = getattr(self.output, "hidden_states", None)
        if not hidden or len(hidden) != n + 1:
            return
        for layer in range(n):
            _same(stream[layer], hidden[layer], f"{_before(layer)} and hidden_states[{layer}]")
        last = [stream[n], *_normed(self._norms(self.model.body, outside=True), stream[n])]
        maps = [m for m in self.model.body.modules() if isinstance(m, nn.Linear) and m.in_features == self.model.d_model]
        last += [m(x) for m in maps for x in last if m.out_features == hidden[n].shape[-1]]  # OPT's project_out
        if not any(_error(ours, hidden[n]) <= TOLERANCE for ours in last if ours.shape == hidden[n].shape):
            raise Misread(f"{_before(n)} is hidden_states[{n}] neither as it is nor after a final norm")

    def check_replacing(self) -> None:
        """Each site replaced by itself, all at once, changes nothing; either kind of part changed does."""
        own: dict[Site, Edit] = {site: torch.clone for site in self.model.sites() if site.kind != "router"}
        last = Site("resid", self.model.n_layers - 1)
        found, _ = self.run([last], own)
        _same(found[last], self.seen[last], "the stream as it is and with every site replaced by itself")
        for site in [*self.model.sites("attn_out"), *self.model.sites("mlp_out")]:
            found, _ = self.run([last], {site: lambda x: x + x.flip(-1)})
            if _error(found[last], self.seen[last]) <= TOLERANCE:
                raise Misread(f"{site} changed changes nothing")

    def check_mlp(self, layer: int) -> None:
        """``mlp_out`` at a token depends on ``mlp_in`` at that token, and on ``mlp_act`` alone where there is one."""
        into, act, out = (Site(kind, layer) for kind in ("mlp_in", "mlp_act", "mlp_out"))
        before = self.seen[out]
        found, _ = self.run([out], {into: _disturb_first})
        after = found[out]
        if _error(after[:, :1], before[:, :1]) <= TOLERANCE:
            raise Misread(f"{out} does not depend on {into} at the same token")
        if self.model.batching.allows("none"):  # else tokens share the routing (Doge)
            _same(after[:, 1:], before[:, 1:], f"{out} as it is and with {into} of an earlier token disturbed")
        new = Site("resid", layer)
        found, _ = self.run([new], {into: _disturb_first, out: partial(_pinned, before)})
        _same(found[new], self.seen[new], f"{new} as it is and with {into} disturbed, {out} held")
        if act not in self.model.structure.taps:
            return
        found, _ = self.run([out], {act: torch.zeros_like})
        _same(found[out], found[out][:1, :1].expand_as(before), f"{out} of all tokens with {act} set to nought")
        text = self.model.config.get_text_config()
        wide = {4 * self.model.d_model} | {w for name in _INNER for w in _numbers(getattr(text, name, None))}
        wide |= {w // 2 for w in wide}  # some count the gate too (Moshi, RecurrentGemma)
        if self.model.width(act) not in wide:
            raise Misread(f"{act} has {self.model.width(act)} neurons, the config knows {sorted(wide)}")

    def check_batching(self) -> None:
        """Texts longer than those that :func:`check_batching` tries move no more in a batch than it says they may."""
        longer = measure(self.model, short=30, long=60)
        for side in SIDES:
            if self.model.batching.allows(side, 60) and longer[side] > 10 * self.model.batching.tolerance:
                raise Misread(f"a text of 60 tokens moves by {longer[side]:.1e} in a batch with padding: {side}")

    def check_tokens(self, layer: int) -> None:
        """With ``attn_out`` and ``mlp_out`` held, what a layer gives at a token depends on the stream at that token alone."""
        into = Site("resid", layer - 1) if layer else Site("embed", 0)
        new = Site("resid", layer)
        parts = [s for s in (Site("attn_out", layer), Site("mlp_out", layer)) if s in self.seen]
        held: dict[Site, Edit] = {s: partial(_pinned, self.seen[s]) for s in parts}
        found, _ = self.run([new], held | {into: _disturb_first})
        was = self.seen[new]
        _same(found[new][:, 1:], was[:, 1:], f"{new} as it is and with an earlier token disturbed, its parts held")
        if _error(found[new][:, :1], was[:, :1]) <= TOLERANCE:
            raise Misread(f"{new} does not depend on the stream before the layer: attn_out or mlp_out holds it already")

    def update(self, layer: int) -> str:
        """How the layer makes its output of its input, ``attn_out`` and ``mlp_out``, in words.

        Raises:
            Misread: no form is found that gives the layer's output.
        """
        new = self.seen[Site("resid", layer)]
        x = self.entries.get(layer, self.seen[Site("embed", 0)])
        norms = list(self._norms(self.model.structure.layers[layer]))
        parts = {kind: self.seen[Site(kind, layer)] for kind in ("attn_out", "mlp_out") if Site(kind, layer) in self.seen}
        # a state-space model or a convolution stands in attention's place, or beside it
        places = [tap.module for site, tap in self.model.structure.taps.items() if site.layer == layer and site.kind in _PARTS]
        others = {}
        for name, value in self.mixers.get(layer, {}).items():
            child = self.model.structure.layers[layer].get_submodule(name)
            if not _is_norm(child) and not any(m is place for place in places for m in child.modules()):
                others[name] = value
        for tried in (parts, others | parts) if others else (parts,):
            for forms in itertools.product(*(_forms(name, part, norms) for name, part in tried.items())):
                scales = _fitted([x, *(value for _, value in forms)], new)
                if scales is not None:
                    names = ["x", *(name for name, _ in forms)]
                    return " + ".join(n if abs(s - 1) < 1e-3 else f"{s:.3g}·{n}" for s, n in zip(scales, names, strict=True))
        if {"attn_out", "mlp_out"} <= parts.keys():
            a, m = parts["attn_out"], parts["mlp_out"]
            for first, second in itertools.permutations(norms, 2):
                if _error(second(first(x + a) + m), new) <= TOLERANCE:
                    return "norm(norm(x + attn_out) + mlp_out)"
            self.check_tokens(layer)
            return "of x, attn_out and mlp_out, token by token"
        experts = any(name.endswith("experts") for name, _ in self.model.structure.layers[layer].named_modules())
        if "attn_out" in parts and experts:
            self.check_tokens(layer)
            return "experts beside another MLP: no mlp_out"
        raise Misread(f"resid:{layer} is not made of the layer's input and {', '.join(parts) or 'nothing'}")

    def _norms(self, module: nn.Module, *, outside: bool = False) -> Iterator[nn.Module]:
        """Norms of the stream's width in a module; ``outside``: of the layers."""
        inside = {id(m) for layer in self.model.structure.layers for m in layer.modules()} if outside else set()
        for part in module.modules():
            weight = getattr(part, "weight", None)
            if id(part) in inside or not _is_norm(part):
                continue
            size = weight.shape if weight is not None else getattr(part, "normalized_shape", (self.model.d_model,))
            if tuple(size) == (self.model.d_model,):
                yield part


def _forms(name: str, part: Tensor, norms: Iterable[nn.Module]) -> list[tuple[str, Tensor]]:
    return [(name, part), *((f"norm({name})", value) for value in _normed(norms, part))]


def _normed(norms: Iterable[nn.Module], x: Tensor) -> Iterator[Tensor]:
    for norm in norms:
        with suppress(TypeError, RuntimeError):  # one that takes more (ZAYA), or another width (audio)
            yield norm(x)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _before(layer: int) -> str:
    return f"resid:{layer - 1}" if layer else "embed:0"


def _numbers(value: Any) -> list[int]:
    return [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int)]


def _pinned(value: Tensor, tensor: Tensor) -> Tensor:
    return value.clone()  # a model may add to it in place


def _disturb_first(x: Tensor) -> Tensor:
    disturbed = x.clone()
    disturbed[:, 0] = -2 * disturbed[:, 0].flip(-1)
    return disturbed


def _error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(b.dtype).tiny))


def _same(a: Tensor, b: Tensor, what: str) -> None:
    if a.shape != b.shape:
        raise Misread(f"{what} differ in shape: {tuple(a.shape)} and {tuple(b.shape)}")
    if not _error(a, b) <= TOLERANCE:
        raise Misread(f"{what} differ by {_error(a, b):.1e} of the largest value")


def _fitted(columns: list[Tensor], target: Tensor) -> list[float] | None:
    """The scales at which the columns add up to the target, none of them nought; None where they do not."""
    design = torch.stack([c.flatten() for c in columns], 1).double()
    scales = torch.linalg.lstsq(design, target.flatten().double()[:, None]).solution
    if bool((scales.abs() < 1e-3).any()) or _error((design @ scales)[:, 0], target.flatten().double()) > TOLERANCE:
        return None
    return [float(s) for s in scales[:, 0]]
