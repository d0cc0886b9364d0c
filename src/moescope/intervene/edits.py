"""Change what flows through named sites of a running model, at chosen tokens. Every other intervention is built on
this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.models.forward_tokens import body_entry, called_with
from moescope.models.past import past_of
from moescope.models.sites import describe_sites
from moescope.types import MODULE, Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel, TapPoint

Positions = Literal["all", "final", "prompt"]
POSITIONS: tuple[Positions, ...] = ("all", "final", "prompt")

Edit = Callable[[Tensor, Tensor], Tensor]
"""``edit(x, chosen)``: x (B, T, D) in the model's dtype, chosen (B, T) bool -> new (B, T, D); x itself is left as it
is.
"""


@dataclass
class Intervention:
    """What an open intervention knows of the forward pass that is running."""

    positions: Positions
    forwards: int = 0
    """Forward passes of the model body since the intervention was opened."""
    rows_before: int = 0
    """Rows of all earlier prompts, and so the running number of the first row of the one that runs now."""
    _prompt_rows: int = field(default=0, repr=False)
    _past: int = field(default=0, repr=False)
    _mask: Tensor | None = field(default=None, repr=False)

    def begin(self, arguments: Mapping[str, Any]) -> None:
        """Note the attention mask and the length of the cache of the forward pass that starts."""
        cache = past_of(arguments)
        # read now: the cache grows while the layers run
        self._past = 0 if cache is None else int(cache.get_seq_length())
        mask = arguments.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) else None
        self.forwards += 1
        tokens = arguments.get("input_ids")
        if tokens is None:
            tokens = arguments.get("inputs_embeds")
        if self._past == 0 and isinstance(tokens, Tensor):
            self.rows_before += self._prompt_rows
            self._prompt_rows = len(tokens)

    def chosen(self, x: Tensor) -> Tensor:
        """Bool (B, T): the tokens of ``x`` (B, T, D) that are edited. Padding never is.

        Raises:
            InputError: the positions need to know the padding, and the attention mask has another shape than (B, past
                + T).
        """
        rows, length = x.shape[:2]
        mask = self._mask
        if mask is None:
            real = torch.ones(rows, length, dtype=torch.bool, device=x.device)
        elif mask.dim() == 2 and len(mask) == rows and mask.shape[1] >= length:
            start = self._past if mask.shape[1] >= self._past + length else mask.shape[1] - length
            real = mask[:, start : start + length].to(device=x.device, dtype=torch.bool)
        elif self.positions == "all" and mask.dim() != 2:
            real = torch.ones(rows, length, dtype=torch.bool, device=x.device)
        else:
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}: positions={self.positions!r} needs one number per row "
                f"and token, ({rows}, {self._past + length})"
            )
        if self.positions == "all":
            return real
        if self._past:  # a continuation, not the prompt
            return torch.zeros_like(real)
        if self.positions == "prompt":
            return real
        last = length - 1 - real.flip(1).to(torch.int8).argmax(1)  # (B,)
        return (torch.arange(length, device=x.device) == last[:, None]) & real


@contextmanager
def editing(model: LoadedModel, edits: Mapping[Site, Edit], *, positions: Positions = "all") -> Iterator[Intervention]:
    """Apply ``edits`` in every forward pass of ``model.body`` (and so of ``model.module`` and its ``generate``)
    inside the block.

    The attention mask (B, T) that the model is called with tells padding from text; without one every token is text.

    Args:
        edits: for each site the function that gives its new tensor.
        positions: ``"all"``: every token, prompt and generated. ``"prompt"``: the tokens that run with an empty
            cache, which in ``generate`` are the prompt's. ``"final"``: of these only each row's last one that is not
            padding.

    Blocks may be nested: at one site the inner edit runs after the outer one. On leaving, in whatever way, the hooks
    go.

    Raises:
        InputError: a site that the model does not have, or an unknown value of ``positions``.
    """
    if positions not in POSITIONS:
        raise InputError(f"positions={positions!r}: choose from {', '.join(POSITIONS)}")
    taps = {site: tap_of(model, site) for site in edits}
    state = Intervention(positions)
    with ExitStack() as hooks:
        hooks.callback(body_entry(model).register_forward_pre_hook(_note(state), with_kwargs=True).remove)
        for site, tap in taps.items():
            hooks.callback(tap.attach(_at_chosen(edits[site], state)).remove)
        yield state


def tap_of(model: LoadedModel, site: Site) -> TapPoint:
    """The tap point of a site at which a vector per token can be replaced.

    Raises:
        InputError: the model has no such site, or it is a router (whose scores are not a vector of neurons).
    """
    if site.kind == "router":
        raise InputError(f"site {site}: router scores are not neurons; choose resid, attn_out, mlp_in, mlp_act or mlp_out")
    known = model.sites()
    if site not in known and not site.kind.startswith(MODULE):
        raise InputError(f"site {site} does not exist: {model.name} has {describe_sites(known)}")
    return model.tap_point(site)


def _note(state: Intervention) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state.begin(called_with(module, args, kwargs))

    return hook


def _at_chosen(edit: Edit, state: Intervention) -> Callable[[Tensor], Tensor]:
    return lambda x: edit(x, state.chosen(x))
