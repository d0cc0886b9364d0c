"""A router that listens to a running model: over a list of texts, inside ``generate()``, or token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from moescope.capture import capture
from moescope.capture.activations import batches_for
from moescope.capture.encode import Batch, Encoded, encode
from moescope.capture.spread import read_batches
from moescope.errors import InputError
from moescope.models.past import past_argument, past_of
from moescope.runtime.choices import Source
from moescope.runtime.route.router import Named, TaskRouter, source_sites, weighted_sum
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel


def opening(model: LoadedModel) -> int:
    """How many tokens of a text are left out because they say nothing of its task: what stands before every text (``<bos>``,
    the head of a chat template), and one at least, since the first token often carries massive activations."""
    if model.tokenizer is None:
        return 1
    special = encode(replace(model, reading=replace(model.reading, met={})), ["a"]).special
    return max(1, int(special.argmin()))


def prompt_features(
    model: LoadedModel,
    texts: Sequence[str] | Encoded,
    source: Source,
    layer: int,
    *,
    sites: Sequence[Site] | None = None,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(N, F) float32, the mean over each text's tokens behind its :func:`opening`, and (N,) their number; later layers are not
    run.

    Args:
        sites: which to read, one after another in F, where they are others than the router's.

    Raises:
        InputError: a text of too few tokens, no such layer, or a dense model whose routing is asked for.
    """
    sites = source_sites(model, source, layer) if sites is None else sites
    encoded, left_out = encode(model, texts, max_tokens=max_tokens), opening(model)
    check_lengths(encoded, left_out)
    found = np.empty((len(encoded), sum(model.width(site) for site in sites)), np.float32)
    read = partial(_read, sites=sites, source=source, left_out=left_out)
    groups = batches_for(model, encoded.lengths, batch_tokens, "right")
    for rows, means in read_batches(model, encoded, groups, "right", read, row_bytes=4 * found.shape[1], progress=progress):
        found[rows] = means
    return found, encoded.lengths - left_out


def check_lengths(encoded: Encoded, left_out: int) -> None:
    """Whether every text has a token behind its :func:`opening` of ``left_out`` tokens.

    Raises:
        InputError: one has none.
    """
    if len(encoded) and encoded.lengths.min() <= left_out:
        row, least = encoded.first + int(encoded.lengths.argmin()), int(encoded.lengths.min())
        few = "one token only" if least == 1 else f"{least} tokens only, and {left_out} stand before every text"
        raise InputError(f"text {row}: {few}, too short to name its task")


def _read(
    model: LoadedModel, batches: Iterable[Batch], *, sites: Sequence[Site], source: Source, left_out: int
) -> Iterator[np.ndarray]:
    """Of each batch float32 (B, F)."""
    with capture(model, sites) as session:
        for batch in batches:
            weight = after_opening(left_out, batch.mask).to(model.device)

            def reduce(_: Site, tensor: Tensor, weight: Tensor = weight) -> Tensor:
                return weighted_sum(source, tensor, weight)

            seen = session.run(batch.ids, batch.mask, reduce=reduce)
            sums = torch.cat([seen[site] for site in sites], dim=1)
            yield (sums / weight.sum(1, keepdim=True)).cpu().numpy()


def name_tasks(router: TaskRouter, model: LoadedModel, texts: Sequence[str] | Encoded, **options: Any) -> list[Named]:
    """The task of each text, from the layers up to the router's; nothing after them is run."""
    return router.name(*prompt_features(router.read_by(model), texts, router.source, router.layer, **options))


class Watch:
    """Made by :func:`watching`: running sums over the tokens that the model has seen since its cache was empty."""

    def __init__(self, router: TaskRouter, on_update: Callable[[list[Named]], None] | None, left_out: int = 1) -> None:
        self._router, self._on_update, self._left_out = router, on_update, left_out
        self._sums: list[Tensor] = []
        self._count: Tensor | None = None
        self._weight: Tensor | None = None
        self._step: list[Tensor] = []

    def now(self) -> list[Named]:
        """What each row of the batch looks like by the tokens so far.

        Raises:
            InputError: nothing has run yet, or a row has had no token behind its opening.
        """
        if self._count is None or not self._sums or not bool((self._count > 0).all()):
            raise InputError(f"the router has seen fewer than {self._left_out + 1} tokens of a row; run the prompt first")
        features = torch.cat(self._sums, dim=1) / self._count[:, None]
        return self._router.name(features.cpu().numpy(), self._count.cpu().numpy())

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the model's body: which of this step's tokens count, and whether a new text begins."""
        given = args[0] if args else kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        if given is None:
            raise InputError("a watched model must be given input_ids or inputs_embeds")
        rows, length = given.shape[:2]
        past = past_of(kwargs)
        seen = int(past.get_seq_length()) if past is not None else 0
        mask = kwargs.get("attention_mask")
        if mask is not None and getattr(mask, "dim", lambda: 0)() != 2:
            raise InputError("a watched model must be given a two-dimensional attention mask: which tokens are padding")
        mask = torch.ones(rows, seen + length, dtype=torch.bool, device=given.device) if mask is None else mask.bool()
        if seen == 0:
            self._sums, self._count = [], None
        self._weight = after_opening(self._left_out, mask)[:, seen : seen + length]
        self._step = []

    def add(self, last: bool, tensor: Tensor) -> None:
        """Hook of each site; ``last`` marks the one that ends a step."""
        if self._weight is None:
            return
        self._step.append(weighted_sum(self._router.source, tensor, self._weight))
        if not last:
            return
        count = self._weight.sum(1).float()
        self._sums = [a + b for a, b in zip(self._sums, self._step, strict=True)] if self._sums else self._step
        self._count = count if self._count is None else self._count + count
        self._weight = None
        if self._on_update is not None and bool((self._count > 0).all()):
            self._on_update(self.now())


@contextmanager
def watching(
    router: TaskRouter,
    model: LoadedModel,
    on_update: Callable[[list[Named]], None] | None = None,
    *,
    resume: Watch | None = None,
) -> Iterator[Watch]:
    """``with watching(router, model) as watch: model.module.generate(...)``; then ``watch.now()``, one entry a row.

    ``on_update`` is called after the router's last layer at every forward pass, while the rest of the model still runs. Beam
    search reorders rows and is not followed. ``resume`` goes on with the sums of an earlier context of the same router, for
    callers between whose steps the model does other work.

    Raises:
        InputError: the model has no such layer or router.
    """
    watch = Watch(router, on_update, opening(router.read_by(model))) if resume is None else resume
    sites = source_sites(model, router.source, router.layer)
    handles = [model.body.register_forward_pre_hook(lambda _, args, kwargs: watch.begin(args, kwargs), with_kwargs=True)]
    try:
        for site in sites:
            handles.append(model.tap_point(site).attach(partial(watch.add, site == sites[-1])))
        yield watch
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def stream(router: TaskRouter, model: LoadedModel, text: str, max_new_tokens: int) -> Iterator[tuple[str, Named]]:
    """Continue a text greedily and yield, for the prompt and then for each new token, its text and what it looks like so far.

    Raises:
        InputError: the model was loaded without its head, or the text has fewer than two tokens.
    """
    if not model.has_head:
        raise InputError(f"{model.name} was loaded without its head, so it cannot continue a text; load it with head=True")
    ids = torch.from_numpy(encode(router.read_by(model), [text])[0].astype(np.int64))[None].to(model.device)
    piece, past = text, None
    with watching(router, model) as watch:
        for _ in range(max_new_tokens + 1):
            out = model.module(input_ids=ids, **past_argument(model.module, past), use_cache=True)
            yield piece, watch.now()[0]
            past, ids = past_of(out), out.logits[:, -1:].argmax(-1)
            piece = model.tokenizer.decode(ids[0])


def after_opening(left_out: int, mask: Tensor) -> Tensor:
    """bool (B, T): the tokens of each row but the first ``left_out``."""
    return mask.bool() & (mask.long().cumsum(1) > left_out)
