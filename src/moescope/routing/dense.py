"""A dense model read as if it were a mixture of experts, so that one set of instruments serves both kinds.

The neurons of each MLP are put into E groups of like size by balanced k-means on how they fire together; a token's "experts"
are the K groups that are most active on it for what they usually are. The grouping by co-activation is the one that splits a
dense MLP into experts (Zhang et al. 2022, "MoEfication", arXiv 2110.01786, who compare it with clustering the weights). No
token is really sent anywhere: every neuron runs on every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from moescope.capture.activations import padded_batches
from moescope.capture.encode import Encoded, encode
from moescope.capture.session import capture
from moescope.errors import InputError
from moescope.models.experts.layers import find_layers
from moescope.routing.capture import trace_prompts
from moescope.routing.trace import RoutingTrace, TracedSequence, id_dtype
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.routing.capture import PromptLike

Progress = Callable[[int, int], None]
_Found = tuple[np.ndarray, Tensor, list[tuple[Tensor, Tensor]]]
"""Rows of a batch, its mask (B, T), and what was read at every site."""


@dataclass(frozen=True, eq=False)
class DenseExperts:
    """Neurons grouped into pseudo-experts; made by :func:`fit_dense_experts`."""

    group: dict[Site, np.ndarray]
    """MLP activation site -> int64 (D,): the expert of each neuron"""
    usual: dict[Site, np.ndarray]
    """site -> float32 (E,): the expert's usual activity, root mean square over the fitted tokens"""
    n_experts: int
    k: int
    _matrices: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    def activity(self, site: Site, x: Tensor) -> Tensor:
        """float32 (..., E): Euclidean norm of each expert's activations x (..., D), over its usual size."""
        key = (site, x.device)
        if key not in self._matrices:
            onehot = torch.nn.functional.one_hot(torch.from_numpy(self.group[site]), self.n_experts).float()
            self._matrices[key] = onehot.to(x.device)
        usual = torch.from_numpy(self.usual[site]).to(x.device)
        return (x.float().square() @ self._matrices[key]).sqrt() / usual.clamp_min(1e-12)

    def chosen(self, site: Site, x: Tensor) -> tuple[Tensor, Tensor]:
        """The k most active experts of each token, most active first: ids int64 and shares of their activity (..., k)."""
        top = self.activity(site, x).topk(self.k, dim=-1)
        return top.indices, top.values / top.values.sum(-1, keepdim=True).clamp_min(1e-12)

    def counts(self, model: LoadedModel, encoded: Encoded, *, batch_tokens: int = 8192) -> np.ndarray:
        """float64 (N, L, E): as :func:`moescope.routing.counts.routing_counts`."""
        out = np.zeros((len(encoded), len(self.group), self.n_experts))
        own = own_tokens(model, encoded)
        for rows, mask, found in run_sites(model, encoded, list(self.group), self.chosen, batch_tokens):
            for row, text in zip(mask, rows, strict=True):
                row[row.clone()] = torch.from_numpy(own[encoded.offsets[text] : encoded.offsets[text + 1]]).to(mask.device)
            for place, (ids, _) in enumerate(found):
                weight = mask[..., None].expand(ids.shape)
                hits = torch.zeros(len(rows), self.n_experts, device=ids.device)
                hits.scatter_add_(1, ids.flatten(1), weight.flatten(1).float())
                out[rows, place] = hits.double().cpu().numpy()
        return out


def fit_dense_experts(
    model: LoadedModel,
    texts: Sequence[str] | Encoded,
    *,
    n_experts: int = 16,
    k: int = 4,
    tokens: int = 1024,
    seed: int = 0,
    batch_tokens: int = 8192,
) -> DenseExperts:
    """Group the neurons of every MLP by which tokens they fire on.

    Args:
        texts: to fit on; ``tokens`` of them, drawn at random, are looked at (float16, tokens x neurons x layers are held).
            A chat template's are none of them.
        n_experts: E, groups of equal size (to one neuron).
        k: groups that count as chosen, per token.

    Raises:
        InputError: the model has no MLP activations (it is a mixture of experts), or fewer neurons than experts.
    """
    sites = list(model.sites("mlp_act"))
    if not sites:
        raise InputError(f"model {model.name} has no dense MLP; its own experts are traced instead")
    if not 1 <= k < n_experts:
        raise InputError(f"{k} of {n_experts} experts a token: choose at least 1 and fewer than all")
    narrow = min(sites, key=model.width)
    if model.width(narrow) < n_experts:
        raise InputError(f"{narrow} has {model.width(narrow)} neurons, fewer than {n_experts} experts: ask for fewer")
    encoded = encode(model, texts)
    own = np.flatnonzero(own_tokens(model, encoded))
    rng = np.random.default_rng(seed)
    wanted = np.zeros(len(encoded.ids), dtype=bool)
    wanted[own[rng.choice(len(own), size=min(tokens, len(own)), replace=False)]] = True
    held: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for rows, mask, found in run_sites(model, encoded, sites, lambda _, x: (x.half(), x.half()), batch_tokens):
        keep = torch.zeros(mask.shape, dtype=torch.bool)
        for row, text in enumerate(rows):
            start, end = encoded.offsets[text], encoded.offsets[text + 1]
            keep[row, mask[row].cpu()] = torch.from_numpy(wanted[start:end])
        for site, (x, _) in zip(sites, found, strict=True):
            held[site].append(x[keep.to(x.device)].cpu())
    group, usual = {}, {}
    for site in sites:
        fitted = torch.cat(held.pop(site)).float().numpy()  # (tokens, D)
        group[site] = balanced_groups(fitted, n_experts, seed=seed)
        onehot = np.eye(n_experts, dtype=np.float32)[group[site]]
        usual[site] = np.sqrt((fitted**2 @ onehot).mean(0)).astype(np.float32)
    return DenseExperts(group, usual, n_experts, k)


def balanced_groups(x: np.ndarray, n_groups: int, *, seed: int = 0) -> np.ndarray:
    """int64 (D,): groups of equal size (to one) of the columns of activations x (T, D) that fire on the same tokens.

    k-means on the magnitudes, each column of unit length and reduced to 32 directions; then columns are dealt to the nearest
    centre that is not full, those first that would lose most by waiting.
    """
    size = np.abs(x).T.astype(np.float64)  # (D, T)
    size -= size.mean(1, keepdims=True)
    size /= np.maximum(np.linalg.norm(size, axis=1, keepdims=True), 1e-12)
    if size.shape[1] > 32:
        rng = np.random.default_rng(seed)
        sketch = size.T @ (size @ rng.standard_normal((size.shape[1], 40)))
        basis = np.linalg.qr(sketch)[0][:, :32]  # range finder (Halko, Martinsson and Tropp 2011)
        size = size @ basis
    centres = KMeans(n_groups, n_init=1, random_state=seed).fit(size).cluster_centers_
    distance = ((size[:, None] - centres[None]) ** 2).sum(-1)  # (D, E)
    room = np.full(n_groups, len(size) // n_groups)
    room[: len(size) % n_groups] += 1
    nearest = np.sort(distance, axis=1)
    group = np.full(len(size), -1, dtype=np.int64)
    for column in np.argsort(nearest[:, 0] - nearest[:, min(1, n_groups - 1)], kind="stable"):
        free = np.where(room > 0, distance[column], np.inf)
        group[column] = int(free.argmin())
        room[group[column]] -= 1
    return group


def dense_trace(
    model: LoadedModel,
    prompts: Sequence[PromptLike],
    *,
    n_experts: int = 16,
    k: int = 4,
    experts: DenseExperts | None = None,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
    seed: int = 0,
    progress: Progress | None = None,
) -> RoutingTrace:
    """A routing trace of a dense model's prompts: its pseudo-experts, with their shares of the activity as weights.

    The grouping is fitted on these prompts' texts, without their categories, unless ``experts`` are given. A chat
    template's tokens have no row: they are the same in every prompt.

    Args:
        max_tokens: keep at most this many tokens of a prompt, its last.

    Raises:
        InputError: see :func:`fit_dense_experts`.
    """
    encoded = encode(model, [p.text for p in prompts], max_tokens=max_tokens)
    if experts is None:
        experts = fit_dense_experts(model, encoded, n_experts=n_experts, k=k, seed=seed, batch_tokens=batch_tokens)
    sites = list(experts.group)
    ids = np.zeros((int(encoded.lengths.sum()), len(sites), experts.k), id_dtype(experts.n_experts))
    said = {"experts": "groups of MLP neurons by co-activation; no token is really sent to them"}
    widths = [experts.n_experts] * len(sites)
    weights = np.zeros(ids.shape, np.float16)
    run = run_sites(model, encoded, sites, experts.chosen, batch_tokens)
    return trace_of_dense(model, prompts, encoded, sites, widths, run, ids, weights, said, progress)


def trace_of_dense(
    model: LoadedModel,
    prompts: Sequence[PromptLike],
    encoded: Encoded,
    sites: Sequence[Site],
    n_experts: Sequence[int],
    run: Iterable[_Found],
    ids: np.ndarray,
    weights: np.ndarray | None,
    said: dict[str, Any],
    progress: Progress | None = None,
) -> RoutingTrace:
    """The trace of what stands for experts in a dense model; a chat template's tokens have no row.

    Args:
        n_experts: of each layer.
        run: of :func:`run_sites`, for each layer the experts of each token and their weights.
        ids, weights: (tokens of ``encoded``, L, K), see :class:`RoutingTrace`; filled by ``run``, as far as it has so many.
        said: what ``meta`` says beside where the trace comes from.
    """
    done = 0
    for rows, mask, found in run:
        for row, text in enumerate(rows):
            at = slice(encoded.offsets[text], encoded.offsets[text + 1])
            for place, (chosen, share) in enumerate(found):
                ids[at, place, : chosen.shape[-1]] = chosen[row][mask[row]].cpu().numpy()
                if weights is not None:
                    weights[at, place] = share[row][mask[row]].cpu().numpy()
        done += len(rows)
        if progress is not None:
            progress(done, len(encoded))
    own = own_tokens(model, encoded)
    sequence = np.repeat(np.arange(len(encoded), dtype=np.int32), encoded.lengths)[own]
    lengths = np.bincount(sequence, minlength=len(encoded))
    return RoutingTrace(
        layers=tuple(site.layer for site in sites),
        n_experts=tuple(n_experts),
        ids=ids[own],
        weights=None if weights is None else weights[own],
        sequence=sequence,
        position=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]) if len(ids) else np.zeros(0, np.int32),
        generated=np.zeros(len(sequence), dtype=bool),
        tokens=encoded.ids[own].astype(np.int32),
        sequences=tuple(TracedSequence(p.id, p.category, p.group) for p in prompts),
        meta={
            "model": model.name,
            "revision": model.revision,
            "fingerprint": model.fingerprint,
            "architecture": model.config.model_type,
            "dtype": str(model.dtype).removeprefix("torch."),
            "encoding": model.reading.record(model.tokenizer),
            **said,
        },
    ).validate()


def is_dense(model: LoadedModel) -> bool:
    """Whether the model has no routed experts."""
    return not find_layers(model.body, model.name)


def any_trace(
    model: LoadedModel,
    prompts: Sequence[PromptLike],
    *,
    n_experts: int = 16,
    k: int = 4,
    seed: int = 0,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> RoutingTrace:
    """The prompts' routing, of a mixture of experts by its own router, of a dense model by :func:`dense_trace`."""
    options: dict[str, Any] = {"max_tokens": max_tokens, "batch_tokens": batch_tokens, "progress": progress}
    if is_dense(model):
        return dense_trace(model, prompts, n_experts=n_experts, k=k, seed=seed, **options)
    return trace_prompts(model, prompts, **options)


def own_tokens(model: LoadedModel, encoded: Encoded) -> np.ndarray:
    """bool (total tokens,): all but those of the model's chat template, where texts are read in it."""
    return ~encoded.special if model.reading.chat else np.ones(len(encoded.ids), dtype=bool)


def run_sites(
    model: LoadedModel,
    encoded: Encoded,
    sites: Sequence[Site],
    read: Callable[[Site, Tensor], tuple[Tensor, Tensor]],
    batch_tokens: int,
) -> Iterator[_Found]:
    """Yield (rows, mask (B, T), what ``read`` gave at every site) batch by batch."""
    with capture(model, sites) as session:
        for batch in padded_batches(model, encoded, batch_tokens, "right"):
            found = session.run(batch.ids, batch.mask, reduce=read)
            yield batch.rows, batch.mask.to(found[sites[0]][0].device), [found[site] for site in sites]
