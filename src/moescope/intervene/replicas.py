"""Evaluate hundreds of interventions on the same texts in few forward passes.

Four savings, of which the last three are checked against an ordinary forward pass on the longest text and left out where
they do not agree with it:

- replicas: a batch holds each example once per set of neurons (:mod:`moescope.intervene.neuron_sets`);
- one token: an intervention at the final token alone leaves all tokens before it as they were, so in a causal model
  their keys and values are computed once per text and each set costs one token;
- shared prefix: the final tokens of one text under many sets stand side by side in one sequence, each seeing the text's
  keys and values and itself, so that the cache is held once and a pass is as wide as the machine likes;
- late start: the layers before the first intervened one are not computed again (:mod:`moescope.intervene.resume`).

Texts are batched by exact length, so there is no padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from moescope.intervene.edits import Edit, editing
from moescope.intervene.resume import can_resume, resumed
from moescope.models.past import past_argument, past_of
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel

Progress = Callable[[int, int], None]
_ABREAST = 256  # final tokens in one sequence: more only adds to what attention masks out


class SetsOfEdits(Protocol):
    """S interventions, any R of which can be applied side by side to a batch of E x R rows (row ``e * R + r``)."""

    def __len__(self) -> int: ...

    def start(self, number: int) -> int:
        """The last layer that intervention ``number`` leaves alone up to (or may begin at the output of); -1: none."""
        ...

    def edits(self, numbers: np.ndarray, examples: np.ndarray) -> dict[Site, Edit]: ...


class Reading(NamedTuple):
    """What a forward pass of E examples under R interventions gave."""

    examples: np.ndarray
    """int64 (E,): which texts"""
    ids: Tensor
    """int64 (E, T)"""
    hidden: Tensor
    """(E, R, D): the last layer's residual stream at the final token"""
    logits: Tensor | None
    """(E, R, V) at the final token, or (E, R, T, V) where ``logits="all"``; None where the model has no head"""


Readout = Callable[[Reading], dict[str, Tensor]]
"""Gives named scores (E, R)."""


class Replicas:
    """Texts of which each is to run under many interventions.

    Args:
        ids: token ids of N texts.
        positions: ``"final"``: interventions act at the final token. ``"all"``: at every token.
        logits: at which tokens the readout needs them.
        spare_first: leave the first token alone under ``positions="all"``.
        places: bool (T,), for texts of one length T, such as images: interventions act at these tokens, in place of the final
            one, and the mean of the last layer's stream over them is what is read.
    """

    def __init__(
        self,
        model: LoadedModel,
        ids: Sequence[np.ndarray],
        *,
        positions: Literal["final", "all"] = "final",
        logits: Literal["final", "all"] | None = None,
        batch_tokens: int = 8192,
        spare_first: bool = False,
        places: np.ndarray | None = None,
    ) -> None:
        self.model = model
        self.ids = ids
        self.positions = positions
        self.logits = logits
        self.batch_tokens = batch_tokens
        self.spare_first = spare_first
        self.places = None if places is None else torch.from_numpy(places)
        self.forwards = 0
        """Forward passes so far, prompts included."""
        self.rows = 0
        """(text, intervention) pairs evaluated so far."""
        self._last = Site("resid", model.n_layers - 1)
        self._runner = model.body if logits is None else model.module
        accepted = inspect.signature(self._runner.forward).parameters
        self._has_cache = "use_cache" in accepted
        self._keep = {"logits_to_keep": 1} if logits == "final" and "logits_to_keep" in accepted else {}
        at_final = positions == "final" and places is None
        self.one_token = at_final and not model.is_encoder and self._has_cache
        self.shared_prefix = self.one_token and "position_ids" in accepted
        self.late_start = can_resume(model)
        self._verify()

    def run(self, sets: SetsOfEdits, readout: Readout, progress: Progress | None = None) -> dict[str, np.ndarray]:
        """Scores of every text under every intervention: name -> float32 (S, N)."""
        results: dict[str, np.ndarray] = {}
        starts = np.array([sets.start(i) if self.late_start else -1 for i in range(len(sets))])
        done = 0
        with torch.no_grad():
            for rows in self._buckets(len(sets)):
                for numbers, reading in self._bucket(rows, sets, starts):
                    for name, score in readout(reading).items():
                        if name not in results:
                            results[name] = np.full((len(sets), len(self.ids)), np.nan, dtype=np.float32)
                        results[name][np.ix_(numbers, rows)] = score.float().cpu().numpy().T
                    done += len(numbers) * len(rows)
                    self.rows += len(numbers) * len(rows)
                    if progress is not None:
                        progress(done, len(sets) * len(self.ids))
        return results

    def read(self, rows: np.ndarray) -> Reading:
        """An ordinary pass over texts of one length, nothing edited and nothing kept: (E, 1, …). Gradients flow where asked."""
        ids = torch.from_numpy(np.stack([self.ids[i] for i in rows]).astype(np.int64)).to(self.model.device)
        hidden, logits = self._forward(ids, None)
        return Reading(rows, ids, hidden[:, None], None if logits is None else logits[:, None])

    def batches(self) -> Iterator[np.ndarray]:
        """All texts, those of one length together, as many at once as a pass may hold."""
        return self._buckets(1)

    def _max_rows(self, length: int) -> int:
        if not self.model.batching.allows("none"):
            return 1
        rows = self.batch_tokens // length
        if self.logits == "all":  # at most 512 MiB of float32 logits
            rows = min(rows, 2**27 // (length * int(self.model.config.get_text_config().vocab_size)))
        return max(rows, 1)

    def _buckets(self, n_sets: int) -> Iterator[np.ndarray]:
        lengths = np.array([len(row) for row in self.ids])
        for length in np.unique(lengths)[::-1]:
            rows = np.flatnonzero(lengths == length)
            # few texts and many sets a batch: what is computed once per text is then shared most
            size = max(1, self._max_rows(int(length)) // min(n_sets, 32))
            if self.shared_prefix and n_sets >= 32:
                size = 1
            for start in range(0, len(rows), size):
                yield rows[start : start + size]

    def _bucket(self, rows: np.ndarray, sets: SetsOfEdits, starts: np.ndarray) -> Iterator[tuple[np.ndarray, Reading]]:
        ids = torch.from_numpy(np.stack([self.ids[i] for i in rows]).astype(np.int64)).to(self.model.device)  # (E, T)
        cache = self._prefix(ids) if self.one_token and ids.shape[1] > 1 else None
        known = self._known(ids, cache, sorted({int(s) for s in starts if s >= 0}))
        abreast = cache is not None and self.shared_prefix and len(rows) == 1
        size = min(_ABREAST, self.batch_tokens) if abreast else max(1, self._max_rows(ids.shape[1]) // len(rows))
        for start in np.unique(starts):
            same = np.flatnonzero(starts == start)
            repeated: tuple[int, _Cache | None] = (0, None)
            for begin in range(0, len(same), size):
                numbers = same[begin : begin + size]
                count = len(numbers)
                if cache is not None and not abreast and repeated[0] != count:
                    repeated = (count, cache.repeat(count))
                with ExitStack() as stack:
                    if start >= 0:
                        hidden = known[int(start)].repeat_interleave(count, 1 if abreast else 0)
                        stack.enter_context(resumed(self.model, int(start), hidden))
                    edits = self._sparing(sets.edits(numbers, rows))
                    if abreast:
                        edits = {site: _abreast(edit) for site, edit in edits.items()}
                    positions = self.positions if cache is None and self.places is None else "all"
                    stack.enter_context(editing(self.model, edits, positions=positions))
                    if abreast:
                        assert cache is not None
                        hidden, logits = self._side_by_side(ids, cache, count)
                    else:
                        hidden, logits = self._forward(ids.repeat_interleave(count, 0), repeated[1])
                shape = (len(rows), count)
                logits = None if logits is None else logits.view(*shape, *logits.shape[1:])
                yield numbers, Reading(rows, ids, hidden.view(*shape, -1), logits)

    def _sparing(self, edits: dict[Site, Edit]) -> dict[Site, Edit]:
        if not self.spare_first and self.places is None:
            return edits

        def spare(edit: Edit) -> Edit:
            def later(x: Tensor, chosen: Tensor) -> Tensor:
                chosen = chosen.clone() if self.places is None else chosen & self.places.to(chosen.device)
                if self.spare_first:
                    chosen[:, 0] = False
                return edit(x, chosen)

            return later

        return {site: spare(edit) for site, edit in edits.items()}

    def _read(self, hidden: Tensor) -> Tensor:
        """(B, D) of a stream (B, T, D): the final token, or the mean over ``places``."""
        return hidden[:, -1] if self.places is None else hidden[:, self.places.to(hidden.device)].mean(1)

    def _forward(self, ids: Tensor, cache: _Cache | None) -> tuple[Tensor, Tensor | None]:
        """Hidden (B, D) of the last layer where it is read, and logits (B, V) or (B, T, V)."""
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self._keep}
        if cache is not None:
            arguments.update(input_ids=ids[:, -1:], use_cache=True, **past_argument(self._runner, cache.fresh()))
        elif self._has_cache:
            arguments["use_cache"] = False
        hidden, output = self._run(arguments)
        if self.logits is None:
            return self._read(hidden), None
        return self._read(hidden), output.logits if self.logits == "all" else output.logits[:, -1]

    def _side_by_side(self, ids: Tensor, cache: _Cache, count: int) -> tuple[Tensor, Tensor | None]:
        """Hidden (count, D) and logits (count, V) of the final token of one text (1, T), ``count`` times in one sequence."""
        past = ids.shape[1] - 1
        own = torch.eye(count, dtype=torch.bool, device=ids.device)
        seen = torch.cat([own.new_ones(count, past), own], dim=1)
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=ids.device)
        mask.masked_fill_(~seen, torch.finfo(self.model.dtype).min)
        arguments: dict[str, Any] = {
            "input_ids": ids[:, -1:].expand(1, count),
            "attention_mask": mask[None, None],
            "position_ids": torch.full((1, count), past, device=ids.device),
            "use_cache": True,
            **past_argument(self._runner, cache.fresh()),
        }
        hidden, output = self._run(arguments)
        return hidden[0], None if self.logits is None else output.logits[0]

    def _run(self, arguments: dict[str, Any]) -> tuple[Tensor, Any]:
        """The last layer's residual stream, and what the model gives."""
        found: list[Tensor] = []
        handle = self.model.tap_point(self._last).attach(lambda x: found.append(x.clone()))
        try:
            output = self._runner(**arguments)
        finally:
            handle.remove()
        self.forwards += 1
        return found[0], output

    def _prefix(self, ids: Tensor) -> _Cache:
        """Keys and values of all tokens but the last."""
        head = ids[:, :-1]
        output = self.model.body(input_ids=head, attention_mask=torch.ones_like(head), use_cache=True)
        self.forwards += 1
        return _Cache(past_of(output))

    def _known(self, ids: Tensor, cache: _Cache | None, layers: Sequence[int]) -> dict[int, Tensor]:
        """The untouched residual stream after each of ``layers``: (E, T, D), or (E, 1, D) with a cache."""
        known: dict[int, Tensor] = {}
        if layers:
            with ExitStack() as stack:
                for layer in layers:

                    def keep(x: Tensor, layer: int = layer) -> None:
                        known[layer] = x.clone()

                    stack.callback(self.model.tap_point(Site("resid", layer)).attach(keep).remove)
                self._forward(ids, cache)
        return known

    def _verify(self) -> None:
        """Drop the savings that change a result on the longest text."""
        if not len(self.ids):
            return
        longest = max(self.ids, key=len)
        ids = torch.from_numpy(np.asarray(longest, dtype=np.int64))[None].to(self.model.device)
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2
        with torch.no_grad():
            plain = self._plain(ids)
            limit = tolerance * float(plain.abs().max())
            cache = self._prefix(ids) if self.one_token and ids.shape[1] > 1 else None
            if cache is not None:
                self.one_token = cache.usable and float((self._forward(ids, cache)[0] - plain).abs().max()) <= limit
                cache = cache if self.one_token else None
            self.shared_prefix = self.shared_prefix and cache is not None and self._agrees_abreast(ids, cache, plain, limit)
            middle = (self.model.n_layers - 1) // 2
            if self.late_start:
                known = self._known(ids, cache, [middle])
                with resumed(self.model, middle, known[middle]):
                    self.late_start = float((self._forward(ids, cache)[0] - plain).abs().max()) <= limit

    def _agrees_abreast(self, ids: Tensor, cache: _Cache, plain: Tensor, limit: float) -> bool:
        """Whether tokens side by side are each what the text's last token is: models take such masks each in their way."""
        try:
            hidden, _ = self._side_by_side(ids, cache, 3)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False
        return float((hidden - plain).abs().max()) <= limit

    def _plain(self, ids: Tensor) -> Tensor:
        """An ordinary pass, which also shows whether layers hand on one tensor (BLOOM's hand on a tuple: no late start)."""
        alone: list[bool] = []
        with ExitStack() as stack:
            for layer in range(self.model.n_layers) if self.late_start else ():

                def look(_module: Any, _inputs: Any, output: Any) -> None:
                    alone.append(isinstance(output, Tensor))

                module = self.model.tap_point(Site("resid", layer)).module
                stack.callback(module.register_forward_hook(look).remove)
            plain, _ = self._forward(ids, None)
        self.late_start = self.late_start and all(alone)
        return plain


def _abreast(edit: Edit) -> Edit:
    """An edit of rows (R, 1, D) as one of a sequence (1, R, D)."""
    return lambda x, chosen: edit(x.transpose(0, 1), chosen.transpose(0, 1)).transpose(0, 1)


class _Cache:
    """A key-value cache that a forward pass may write to without spoiling it for the next one."""

    def __init__(self, cache: Any, states: list[dict[str, Any]] | None = None) -> None:
        self._cache = cache
        layers = getattr(cache, "layers", [])
        # these append by concatenation and so never write into the tensors that are kept here
        self.usable = isinstance(cache, DynamicCache) and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers
        )
        self._states = [dict(vars(layer)) for layer in layers] if states is None else states

    def fresh(self) -> Any:
        """The cache as it was first."""
        for layer, state in zip(self._cache.layers, self._states, strict=True):
            vars(layer).clear()
            vars(layer).update(state)
        return self._cache

    def repeat(self, count: int) -> _Cache:
        """Each row ``count`` times in a row."""
        states = [
            state | {k: state[k].repeat_interleave(count, 0) for k in ("keys", "values") if state.get(k) is not None}
            for state in self._states
        ]
        return _Cache(self._cache, states)
