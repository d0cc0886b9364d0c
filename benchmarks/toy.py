"""A world in which the right answer is known: several tasks on planted features of their own or in common, and small networks.

Inputs are a random rotation of Gaussian features. A task is decided by its ``features``: the sign of a combination of their
magnitudes, which no linear read-out can tell, so that a hidden layer has to find the features. The first of them are common to
all tasks (``shared``); tasks combine common ones by orthogonal patterns of signs, so that their answers do not follow each
other. Many seeds, each with a world of its own, are trained side by side.

Circuits are measured as `moescope circuits` measures them: neurons ranked by divergence, what two tasks' best neurons share
between halves beside what each repeats of itself, and what switching off one task's neurons takes from it and from the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from torch import Tensor

from moescope.errors import InputError
from moescope.select.ranking import divergence, fold_class_sums, rank
from moescope.studies.circuits.features import Columns, Features
from moescope.studies.circuits.overlap import overlap_row, permuted_rankings
from moescope.tasks import split_half
from moescope.types import Example, Site, Task

FEATURES, INPUTS = 8, 64  # of one task; of the world, which has room for eight tasks of features of their own
STEPS, ROWS, HALVINGS, PERMUTATIONS = 1000, 800, 5, 39
BASES = ("trained", "untrained", "rotated")
Kind = Literal["dense", "modules", "random mask", "untrained"]


@dataclass(frozen=True, kw_only=True)
class World:
    """``tasks`` tasks of :data:`FEATURES` features each, a share ``shared`` of them common; ``noise`` of their labels wrong."""

    tasks: int = 2
    shared: float = 0.0
    noise: float = 0.0
    seeds: int = 10

    def __post_init__(self) -> None:
        if not 2 <= self.tasks <= FEATURES:
            raise InputError(f"{self.tasks}: a world has 2 to {FEATURES} tasks", "tasks")

    def features(self, task: int) -> list[int]:
        """Which features decide a task."""
        common = round(self.shared * FEATURES)
        own = FEATURES - common
        return [*range(common), *range(common + task * own, common + (task + 1) * own)]

    def weights(self) -> Tensor:
        """(INPUTS, tasks): the sign by which a feature's magnitude counts for a task, else 0."""
        signs, out = hadamard(FEATURES), torch.zeros(INPUTS, self.tasks)
        for task in range(self.tasks):
            out[self.features(task), task] = torch.from_numpy(signs[task]).float()
        return out

    def rotations(self) -> Tensor:
        """(seeds, INPUTS, INPUTS): how each seed's features lie in its inputs."""
        draw = torch.Generator().manual_seed(7)
        return torch.linalg.qr(torch.randn(self.seeds, INPUTS, INPUTS, generator=draw)).Q

    def sample(self, rows: int, rng: torch.Generator, rotations: Tensor, *, noise: bool = True) -> tuple[Tensor, Tensor]:
        """Inputs (seeds, rows, INPUTS) and answers (seeds, rows, tasks), 0 or 1."""
        f = torch.randn(self.seeds, rows, INPUTS, generator=rng)
        y = (f.abs() - (2 / np.pi) ** 0.5) @ self.weights() > 0
        if noise and self.noise:
            y = y ^ (torch.rand(y.shape, generator=rng) < self.noise)
        return f @ rotations, y.float()


def module_width(width: int, tasks: int) -> int:
    """Neurons of a layer whose every neuron is read by one task only, with as many weights as a dense layer of ``width``.

    A dense neuron has ``INPUTS + 1`` weights and is read by ``tasks`` heads, so that it costs INPUTS + 1 + tasks weights (and
    multiply-adds, but for the bias); one of a module INPUTS + 2. Rounded down to whole modules.
    """
    return int(width * (INPUTS + 1 + tasks) / (INPUTS + 2)) // tasks * tasks


class Networks:
    """One hidden layer of ReLUs and a head for each task, for all seeds of a world at once.

    ``dense``: every head reads every neuron. ``modules``: neurons are dealt out to the tasks before training, and a head reads
    its own. ``random mask``: each head reads as many neurons as a module has, drawn at random, so that it is as sparse but not
    apart. ``untrained``: dense, with a hidden layer that stays as it was drawn (the twin).
    """

    def __init__(self, kind: Kind, world: World, width: int, *, seed: int = 0) -> None:
        self.kind, self.world = kind, world
        self.width = module_width(width, world.tasks) if kind in ("modules", "random mask") else width
        draw = torch.Generator().manual_seed(seed)
        shape, tasks = (world.seeds, self.width), world.tasks
        self.w_in = torch.randn(world.seeds, INPUTS, self.width, generator=draw) * (2 / INPUTS) ** 0.5
        self.bias = torch.zeros(world.seeds, 1, self.width)
        self.mask = torch.ones(*shape, tasks)
        if kind == "modules":
            owner = torch.arange(self.width) % tasks
            self.mask = (owner[:, None] == torch.arange(tasks)).float().expand(*shape, tasks)
        elif kind == "random mask":
            chosen = torch.rand(*shape, tasks, generator=draw).argsort(1) < self.width // tasks
            self.mask = chosen.float()
        read = float(self.mask[0, :, 0].sum())
        self.w_out = torch.randn(*shape, tasks, generator=draw) / read**0.5
        self.bias_out = torch.zeros(world.seeds, 1, tasks)

    @property
    def parameters(self) -> int:
        """Weights of one seed's network, those that are masked left out."""
        return self.width * (INPUTS + 1) + int(self.mask[0].sum()) + self.world.tasks

    def hidden(self, x: Tensor) -> Tensor:
        """(seeds, rows, width)"""
        return torch.relu(torch.baddbmm(self.bias, x, self.w_in))

    def heads(self, hidden: Tensor) -> Tensor:
        """Log-odds (seeds, rows, tasks)."""
        return torch.baddbmm(self.bias_out, hidden, self.w_out * self.mask)

    def train(
        self, *, steps: int, rows: int | None = None, batch: int = 256, rate: float = 1e-2, decay: float = 0.02, seed: int = 1
    ) -> Networks:
        """AdamW, cosine to zero; on fresh rows in every step, or on ``rows`` fixed ones."""
        world, rng = self.world, torch.Generator().manual_seed(seed)
        turned = world.rotations()
        fixed = None if rows is None else world.sample(rows, rng, turned)
        learned = [self.w_out, self.bias_out, *([] if self.kind == "untrained" else [self.w_in, self.bias])]
        for parameter in learned:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            if fixed is None:
                x, y = world.sample(batch, rng, turned)
            else:
                chosen = torch.randint(len(fixed[0][0]), (batch,), generator=rng)
                x, y = (part[:, chosen] for part in fixed)
            optimizer.zero_grad()
            # a sum over seeds, so that each is trained as if alone
            loss = F.binary_cross_entropy_with_logits(self.heads(self.hidden(x)), y, reduction="none").mean((1, 2)).sum()
            loss.backward()
            optimizer.step()
            schedule.step()
        for parameter in learned:
            parameter.requires_grad_(False)
        return self


def accuracy(log_odds: Tensor, y: Tensor) -> np.ndarray:
    """Share of rows answered rightly, (seeds, tasks)."""
    return np.asarray(((log_odds > 0) == (y > 0.5)).double().mean(1))


def circuit_size(width: int) -> int:
    """An eighth of the layer: that of one of eight tasks."""
    return width // 8


def _features(x: np.ndarray, y: np.ndarray, seed: int) -> Features:
    groups = np.arange(len(y)).astype(str)
    task = Task("toy", tuple(Example("", int(c), g) for c, g in zip(y, groups, strict=True)), ("a", "b"), source="made here")
    return Features(
        task, Columns((Site("mlp_act", 0),), (x.shape[1],)), x, np.zeros((len(x), 1), np.float32), y, groups, y, seed
    )


def _ranking(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return rank(divergence(*fold_class_sums(x, y, np.zeros(len(y), np.int64)).total()))


def separateness(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], k: int, seed: int) -> dict[str, Any]:
    """What two tasks' circuits of ``k`` neurons share, each task given as its activations (N, D) and labels (N,)."""
    whole, halves, drawn = [], [], []
    for turn, (x, y) in enumerate((a, b)):
        features = _features(x, y, seed + turn)
        sides = [split_half(y, features.groups, seed + i) for i in range(HALVINGS)]
        halves.append([(_ranking(x[s], y[s]), _ranking(x[~s], y[~s])) for s in sides])
        whole.append(_ranking(x, y))
        drawn.append(permuted_rankings(features, "pooled", n=PERMUTATIONS, k=k, seed=seed + turn))
    return overlap_row(whole[0], whole[1], halves[0], halves[1], drawn[0], drawn[1], k)


def specificity(network: Networks, hidden: Tensor, y: Tensor, circuits: np.ndarray) -> np.ndarray:
    """(seeds,) accuracy that the first two tasks lose beyond each other where their own neurons (seeds, 2, k) are put to their
    mean."""
    before = accuracy(network.heads(hidden), y)
    found = np.zeros(len(hidden))
    for task in (0, 1):
        index = torch.from_numpy(circuits[:, task])[:, None].expand(-1, hidden.shape[1], -1)
        without = hidden.scatter(2, index, hidden.mean(1, keepdim=True).expand_as(hidden).gather(2, index))
        lost = before - accuracy(network.heads(without), y)
        found += (lost[:, task] - lost[:, 1 - task]) / 2
    return found


def cell_rows(world: World, width: int, steps: int = STEPS) -> list[dict[str, Any]]:
    """One row a seed and basis of the hidden layer: ``trained``, ``untrained`` and ``rotated``."""
    turned, k = world.rotations(), circuit_size(width)
    networks = {kind: Networks(kind, world, width).train(steps=steps) for kind in ("dense", "untrained")}
    rng = torch.Generator().manual_seed(3)
    texts = [world.sample(ROWS, rng, turned) for _ in range(2)]  # each task is studied on inputs of its own
    judge, answers = world.sample(2000, rng, turned, noise=False)
    basis = torch.linalg.qr(torch.randn(world.seeds, width, width, generator=rng)).Q
    rows = []
    for name in BASES:
        network = networks["untrained" if name == "untrained" else "dense"]
        read = [network.hidden(x) @ basis if name == "rotated" else network.hidden(x) for x, _ in texts]
        right = accuracy(network.heads(network.hidden(judge)), answers).mean(1)
        found, circuits = [], np.zeros((world.seeds, 2, k), np.int64)
        for seed in range(world.seeds):
            pair = [
                (h[seed].numpy(), y[seed, :, t].numpy().astype(int))
                for t, (h, (_, y)) in enumerate(zip(read, texts, strict=True))
            ]
            found.append(separateness(pair[0], pair[1], k, 100 * seed))
            circuits[seed] = np.stack([_ranking(*one)[:k] for one in pair])
        lost = (
            np.full(world.seeds, np.nan)
            if name == "rotated"
            else specificity(network, network.hidden(judge), answers, circuits)
        )
        for seed, row in enumerate(found):
            rows.append(
                {
                    **{"tasks": world.tasks, "width": width, "shared": world.shared, "noise": world.noise},
                    **{"basis": name, "seed": seed, "accuracy": right[seed], "specificity": lost[seed]},
                    **{"own": (row["split_half_a"] + row["split_half_b"]) / 2 / k, "cross": row["split_half_cross"] / k},
                    **{"chance": row["expected"] / k, "gap": row["gap"]},
                }
            )
    return rows


def built_rows(world: World, width: int, rows: int | None, steps: int = STEPS) -> list[dict[str, Any]]:
    """One row a seed and way to build the layer, at as many weights: accuracy, mean over tasks, on new inputs."""
    kinds: tuple[Kind, ...] = ("dense", "modules", "random mask")
    judge, answers = world.sample(2000, torch.Generator().manual_seed(3), world.rotations(), noise=False)
    found = []
    for kind in kinds:
        network = Networks(kind, world, width).train(steps=steps, rows=rows)
        right = accuracy(network.heads(network.hidden(judge)), answers).mean(1)
        head = {"tasks": world.tasks, "width": width, "shared": world.shared, "rows": 0 if rows is None else rows, "kind": kind}
        found += [head | {"parameters": network.parameters, "seed": s, "accuracy": a} for s, a in enumerate(right)]
    return found
