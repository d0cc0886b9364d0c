"""Running text on which interventions are judged off task, and what ablated neurons are set to there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from moescope.capture.session import capture
from moescope.capture.windows import opening, text_ids, windows
from moescope.errors import InputError
from moescope.intervene.replicas import Progress, Reading, Replicas
from moescope.intervene.text_loss import token_losses
from moescope.intervene.together import KeyedSets, run_together
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel

LOSS = "wikitext_loss"


class RunningText:
    """Windows of plain text of one length, read once and then run under many interventions.

    Every token but each window's first, which often holds attention sinks, is edited.

    Args:
        paragraphs: of plain text, of which about ``tokens`` tokens are taken.

    Raises:
        InputError: the text has fewer than 16 tokens.
    """

    def __init__(
        self,
        model: LoadedModel,
        paragraphs: Sequence[str],
        *,
        tokens: int,
        batch_tokens: int = 8192,
        max_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.windows = plain_windows(model, paragraphs, tokens=tokens, max_tokens=max_tokens)
        self.replicas = Replicas(
            model, self.windows, positions="all", logits="all", batch_tokens=batch_tokens, spare_first=True
        )
        self._batch_tokens = batch_tokens
        self._seen: dict[Site, Tensor] = {}

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.windows))

    def losses(self, collections: Sequence[KeyedSets], progress: Progress | None = None) -> list[np.ndarray]:
        """float32 (S_i, W) for each collection of S_i interventions: each window's mean loss, nats per token."""
        return [scores[LOSS] for scores in run_together(self.replicas, collections, loss_readout, progress)]

    def read(self, sites: Sequence[Site]) -> None:
        """Run the untouched model once and keep its activations (W, T, D) at those of ``sites`` not yet known."""
        new = [site for site in dict.fromkeys(sites) if site not in self._seen]
        if not new:
            return
        found: dict[Site, list[Tensor]] = {site: [] for site in new}
        size = max(1, self._batch_tokens // len(self.windows[0])) if self.model.batching.allows("none") else 1
        with capture(self.model, new) as session:
            for start in range(0, len(self.windows), size):
                ids = torch.from_numpy(np.stack(self.windows[start : start + size]).astype(np.int64))
                for site, x in session.run(ids, reduce=lambda _, x: x.float().cpu()).items():
                    found[site].append(x)
        self._seen |= {site: torch.cat(parts) for site, parts in found.items()}

    def replacement(
        self,
        mode: Literal["mean", "zero", "resample", "patch"],
        means: Mapping[Site, np.ndarray],
        rng: np.random.Generator,
    ) -> dict[Site, Tensor]:
        """What neurons are set to: (D,), (W, D) or (W, T, D) for each site of ``means``.

        ``"mean"`` and ``"resample"`` take their values from the text itself; ``means`` gives, per site, the (C, D) class
        means of a task, which ``"patch"`` sets in turn.
        """
        count, length = len(self.windows), len(self.windows[0])
        sites = list(means)
        if mode == "zero":
            return {site: torch.zeros(self.model.width(site)) for site in sites}
        if mode == "patch":
            return {site: torch.from_numpy(means[site][np.arange(count) % len(means[site])]).float() for site in sites}
        self.read(sites)
        first = min(1, length - 1)  # the first token is not edited, nor does it count
        donors = torch.from_numpy(rng.permutation(count * (length - first)))
        result: dict[Site, Tensor] = {}
        for site in sites:
            flat = self._seen[site][:, first:].reshape(-1, self._seen[site].shape[-1])
            if mode == "mean":
                result[site] = flat.mean(0)
            else:
                result[site] = self._seen[site].clone()
                result[site][:, first:] = flat[donors].view(count, length - first, -1)
        return result


def loss_readout(reading: Reading) -> dict[str, Tensor]:
    """Scores (E, R): each text's mean loss, nats per token after the first."""
    assert reading.logits is not None
    return {LOSS: token_losses(reading.logits, reading.ids[:, None]).mean(-1)}


def plain_windows(
    model: LoadedModel, paragraphs: Sequence[str], *, tokens: int, length: int = 128, max_tokens: int | None = None
) -> list[np.ndarray]:
    """About ``tokens`` tokens of running text in :func:`~moescope.capture.windows.windows` of one length.

    Raises:
        InputError: the text has fewer than 16 tokens.
    """
    limits = [length, tokens, *([max_tokens] if max_tokens else [])]
    declared = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = min(limits + ([int(declared)] if declared else []))
    ids = text_ids(model, (paragraph + "\n" for paragraph in paragraphs), enough=tokens)
    found = windows(model, ids, length=min(length, len(opening(model)) + len(ids)), most=tokens)
    if len(ids) < 16 or not len(found):
        raise InputError(f"wikitext: {len(ids)} tokens of plain text are too few; give some paragraphs")
    return list(found)
