"""The same task on inputs, or with a teacher, that lack one thing: what is left of a finding tells what it rests on.

Every control keeps the sizes of the splits and is a source of pairs like the real one, so that the same students are trained
on it by the same rules (STATISTICS: the dense/MoE *ratio* is compared, since the output variance changes between them).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from moescope.errors import InputError
from moescope.studies.distill.data import SPLITS, ArrayPairs, Block, Pairs, Split, blocks, count, whole
from moescope.studies.distill.teacher import Teacher

Label = Callable[[Tensor], Tensor]
CONTROLS: dict[str, str] = {
    "gaussian": "Gaussian inputs with the same mean and covariance, labelled by the teacher (as published)",
    "kurtosis": "independent principal components with the same mean, covariance and kurtosis, labelled by the teacher",
    "mixture": "a mixture of Gaussians fitted to the inputs, labelled by the teacher",
    "shuffled-teacher": "the real inputs, labelled by the teacher with the entries of each weight matrix shuffled",
    "shuffled-outputs": "the real inputs with the outputs of other tokens: nothing can be learned",
}


def control_pairs(name: str, pairs: Pairs, teacher: Label, *, seed: int = 0) -> ArrayPairs:
    """The control ``name`` (see :data:`CONTROLS`) of ``pairs``.

    Raises:
        InputError: no such control, or a teacher whose weights cannot be shuffled.
    """
    if name not in CONTROLS:
        raise InputError(f"{name!r} is none of {', '.join(CONTROLS)}", "control")
    if name == "shuffled-outputs":
        return shuffled_outputs(pairs, seed)
    if name == "shuffled-teacher":
        if not isinstance(teacher, Teacher):
            raise InputError("shuffled-teacher needs a model's layer as teacher", "control")
        shuffled = shuffled_teacher(teacher, seed)
        real = {split: whole(pairs, split) for split in SPLITS}
        return _pairs(name, pairs, {s: Block(b.x, shuffled(b.x), b.tokens, b.documents) for s, b in real.items()})
    mean, covariance = moments(pairs)
    if name == "gaussian":
        sample = gaussian(mean, covariance)
    elif name == "kurtosis":
        sample = kurtosis_matched(mean, covariance, pairs)
    else:
        sample = gaussian_mixture(pairs, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    made: dict[Split, Block] = {}
    for split in SPLITS:
        x = sample(count(pairs, split), rng)
        made[split] = Block(x, teacher(x), None)
    return _pairs(name, pairs, made)


def distances(control: Pairs, real: Pairs, most: int = 4096) -> tuple[float, float]:
    """How far a control's inputs and outputs are from the real ones in the first ``most`` training vectors: the norm of the
    difference over that of the real ones."""
    one, two = whole(control, "train", most), whole(real, "train", most)
    n = min(len(one.x), len(two.x))
    return tuple(float((a[:n] - b[:n]).norm() / b[:n].norm()) for a, b in ((one.x, two.x), (one.y, two.y)))  # type: ignore


def _pairs(name: str, pairs: Pairs, made: dict[Split, Block]) -> ArrayPairs:
    return ArrayPairs(f"{name} control of {pairs.name}", made, buffer=pairs.buffer)


Sampler = Callable[[int, torch.Generator], Tensor]


def moments(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of the training inputs, float64, in one pass."""
    shift = pairs.load("train", np.arange(1)).x[0].double()  # about a vector of the data, for precision
    n, total, square = 0, torch.zeros_like(shift), torch.zeros(len(shift), len(shift), dtype=torch.float64)
    for block in blocks(pairs, "train"):
        x = block.x.double() - shift
        n, total, square = n + len(x), total + x.sum(0), square + x.T @ x
    mean = total / n
    return shift + mean, (square - n * torch.outer(mean, mean)) / max(n - 1, 1)


def _axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations (d,) along, and directions (d, d, columns) of, the principal axes."""
    values, vectors = torch.linalg.eigh(covariance)
    return values.clamp(min=0).sqrt(), vectors


def gaussian(mean: Tensor, covariance: Tensor) -> Sampler:
    deviation, vectors = _axes(covariance)

    def sample(n: int, rng: torch.Generator) -> Tensor:
        z = torch.randn(n, len(mean), generator=rng)
        return z @ (vectors * deviation).T.float() + mean.float()

    return sample


def kurtosis_matched(mean: Tensor, covariance: Tensor, pairs: Pairs) -> Sampler:
    """Independent principal components, each with the training inputs' own kurtosis.

    A heavy tail is a mixture of two normals of one mean; a light one a normal around two points. Both have variance 1 and
    the wanted fourth moment exactly (a light tail down to that of two points, −2).
    """
    deviation, vectors = _axes(covariance)
    n, fourth = 0, torch.zeros(len(mean), dtype=torch.float64)
    for block in blocks(pairs, "train"):
        z = (block.x.double() - mean) @ vectors / deviation.clamp(min=1e-12)
        n, fourth = n + len(z), fourth + z.pow(4).sum(0)
    excess = (fourth / n - 3).clamp(min=-2)  # (d,)
    # heavy: variance 1 + c with probability p, else 1 − cp/(1 − p): their variance c²p/(1 − p) must be excess / 3
    spread = excess.clamp(min=0) / 3
    p = 1 / (1 + 1.5 * spread).clamp(min=10)  # at most a tenth, and small enough that no variance is negative
    c = (spread * (1 - p) / p).sqrt()
    # light: sign · √a + normal · √(1 − a) has excess −2a²
    a = (-excess.clamp(max=0) / 2).sqrt()

    def sample(n: int, rng: torch.Generator) -> Tensor:
        shape = (n, len(mean))
        high = torch.rand(shape, generator=rng) < p.float()
        variance = torch.where(high, (1 + c).float(), (1 - c * p / (1 - p)).clamp(min=0).float())
        sign = torch.randint(0, 2, shape, generator=rng) * 2.0 - 1.0
        z = torch.randn(shape, generator=rng) * (variance * (1 - a).float()).sqrt() + sign * a.sqrt().float()
        return z @ (vectors * deviation).T.float() + mean.float()

    return sample


def gaussian_mixture(pairs: Pairs, *, clusters: int = 32, seed: int = 0) -> Sampler:
    """k-means clusters of the training inputs, each replaced by a Gaussian of its mean and covariance.

    A cluster with few tokens takes part of its covariance from all of them: weight d / (d + tokens).
    """
    x = whole(pairs, "train", pairs.buffer).x
    d = x.shape[1]
    found = MiniBatchKMeans(min(clusters, len(x)), random_state=seed, n_init=3, batch_size=4096).fit(x.numpy())
    label = torch.from_numpy(found.labels_).long()
    centred = x - torch.from_numpy(found.cluster_centers_).float()[label]
    pooled = (centred.T @ centred / len(x)).double()
    share, means, roots = [], [], []
    for cluster in range(int(label.max()) + 1):
        members = x[label == cluster].double()
        if not len(members):
            continue
        mean = members.mean(0)
        own = (members - mean).T @ (members - mean) / len(members)
        keep = len(members) / (d + len(members))
        deviation, vectors = _axes(keep * own + (1 - keep) * pooled)
        share.append(len(members) / len(x))
        means.append(mean.float())
        roots.append((vectors * deviation).T.float())

    def sample(n: int, rng: torch.Generator) -> Tensor:
        which = torch.multinomial(torch.tensor(share), n, replacement=True, generator=rng)
        z = torch.randn(n, d, generator=rng)
        out = torch.empty(n, d)
        for cluster, (mean, root) in enumerate(zip(means, roots, strict=True)):
            rows = which == cluster
            out[rows] = z[rows] @ root + mean
        return out

    return sample


def shuffled_outputs(pairs: Pairs, seed: int = 0) -> ArrayPairs:
    """Each input with another token's output."""
    made: dict[Split, Block] = {}
    for number, split in enumerate(SPLITS):
        block = whole(pairs, split)
        order = torch.from_numpy(np.random.default_rng([seed, number]).permutation(len(block.y)))
        made[split] = Block(block.x, block.y[order], block.tokens, block.documents)
    return _pairs("shuffled-outputs", pairs, made)


def shuffled_teacher(teacher: Teacher, seed: int = 0) -> Label:
    """The teacher with the entries of each of its weight matrices permuted: the same numbers, nothing learned left.

    Raises:
        InputError: its block hangs in the layer without a module of its own (OPT, BERT), so that it cannot be copied alone.
    """
    module = teacher.entry.module
    if not any(m is teacher.exit.module for m in module.modules()):
        raise InputError(
            f"layer {teacher.layer} of {teacher.model.name}: its MLP is no module of its own; leave this control out"
        )
    kept = copy.deepcopy(module.state_dict())
    rng = torch.Generator().manual_seed(seed)
    mixed = {
        name: value.flatten()[torch.randperm(value.numel(), generator=rng).to(value.device)].reshape(value.shape)
        for name, value in kept.items()
    }

    def label(x: Tensor) -> Tensor:
        module.load_state_dict(mixed)
        try:
            return teacher(x)
        finally:
            module.load_state_dict(kept)

    return label
