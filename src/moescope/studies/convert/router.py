"""The linear router of a split MLP: from the weights alone, by least squares, or distilled a little further."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moescope.studies.convert.settings import Router

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
_HELD_BACK = 0.2  # of the calibration tokens, to choose the ridge and to stop the distillation


@dataclass(frozen=True, eq=False)
class LinearRouter:
    """Scores ``x · weightᵀ + bias``; the experts of the largest scores are taken.

    ``captured`` is the share of the routed experts' squared output norms that the chosen ones hold on held-back calibration
    tokens, ``oracle`` the share when the choice is by those norms themselves, ``chance`` that of a choice at random.
    """

    weight: Tensor
    """(E, d)"""
    bias: Tensor
    """(E,)"""
    captured: float
    oracle: float
    chance: float
    spread: float
    """standard deviation of ``x · weightᵀ`` over a token's experts, root mean square over held-back tokens"""

    def scale(self, spread: float) -> float:
        """The factor that makes the scores spread this little."""
        return spread / max(self.spread, 1e-30)


def fit_router(
    x: Tensor, mass: Tensor, k: int, kind: Router, *, gate: Tensor, members: Tensor, biased: bool = True, seed: int = 0
) -> LinearRouter:
    """Fit a router that sends tokens to the ``k`` experts whose output is largest.

    Args:
        x: (T, d) what the router sees. mass: (T, E) the norm of each expert's output there.
        gate: (I, d) and members (E, w): the gate rows of the dense MLP and who holds them; ``centroid`` uses only these.
        biased: whether the target has a place for a bias on the scores.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held = order[: max(1, int(len(x) * _HELD_BACK))]
    fit = order[len(held) :]
    if kind == "centroid":
        weight = F.normalize(gate, dim=1)[members].mean(1)
        bias = mass.new_zeros(len(members))
    else:
        weight, bias = _ridge(x[fit], mass[fit], x[held], mass[held], k, biased)
        if kind == "distilled":
            weight, bias = _distil(x[fit], mass[fit], x[held], mass[held], k, weight, bias, biased, seed)
    scores = x[held] @ weight.T
    return LinearRouter(
        weight,
        bias,
        captured_share(scores + bias, mass[held], k),
        captured_share(mass[held], mass[held], k),
        k / mass.shape[1],
        float((scores - scores.mean(1, keepdim=True)).square().mean().sqrt()),
    )


def captured_share(scores: Tensor, mass: Tensor, k: int) -> float:
    """The share of squared mass that the k best-scored experts hold, mean over tokens."""
    energy = mass.square()
    return float((energy.gather(1, scores.topk(k, 1).indices).sum(1) / energy.sum(1).clamp_min(1e-30)).mean())


def _ridge(x: Tensor, mass: Tensor, x_held: Tensor, mass_held: Tensor, k: int, biased: bool) -> tuple[Tensor, Tensor]:
    """Least squares of the masses on x; the penalty, relative to x's mean variance, is the best on held-back tokens."""
    x, mass = x.double(), mass.double()
    centre, middle = (x.mean(0), mass.mean(0)) if biased else (x.new_zeros(x.shape[1]), mass.new_zeros(mass.shape[1]))
    centred = x - centre
    gram, cross = centred.T @ centred, centred.T @ (mass - middle)
    unit = torch.eye(len(gram), dtype=gram.dtype) * gram.diagonal().mean()
    fits = []
    for ridge in _RIDGES:
        weight = torch.linalg.solve(gram + ridge * unit, cross).T
        bias = middle - weight @ centre
        weight, bias = weight.float(), bias.float()
        fits.append((captured_share(x_held @ weight.T + bias, mass_held, k), weight, bias))
    _, weight, bias = max(fits, key=lambda fit: fit[0])
    return weight, bias


def _distil(
    x: Tensor, mass: Tensor, x_held: Tensor, mass_held: Tensor, k: int, weight: Tensor, bias: Tensor, biased: bool, seed: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy between the experts' shares of the squared output and the router's softmax, from the ridge solution.

    Adam over a few hundred small batches; the best state on held-back tokens is kept, the starting one included.
    """
    spread = (x_held @ weight.T + bias).std(0).mean().clamp_min(1e-12)
    start_w, start_b = weight / spread, bias / spread
    w, b = start_w.clone().requires_grad_(), start_b.clone().requires_grad_(biased)
    best = (captured_share(x_held @ weight.T + bias, mass_held, k), weight, bias)
    optimizer = torch.optim.Adam([p for p in (w, b) if p.requires_grad], lr=0.02 * float(start_w.std()))
    share = mass.square() / mass.square().sum(1, keepdim=True).clamp_min(1e-30)
    draw = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for step in range(1, 401):
            rows = torch.randint(len(x), (256,), generator=draw)
            loss = F.cross_entropy(x[rows] @ w.T + b, share[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 40 == 0:
                held = captured_share((x_held @ w.T + b).detach(), mass_held, k)
                if held > best[0]:
                    best = (held, w.detach().clone(), b.detach().clone())
    return best[1], best[2]
