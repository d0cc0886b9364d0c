"""How an outcome of the untouched model would follow a small change of its neurons at the final token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from torch import Tensor

from moescope.intervene.replicas import Reading, Replicas
from moescope.types import Site


def gradients(replicas: Replicas, sites: Sequence[Site], outcome: Callable[[Reading], Tensor]) -> dict[Site, np.ndarray]:
    """float32 (N, D) for each site: the gradient of each text's outcome by that site's vector at the final token, or
    by what is added to it at all of the replicas' places.

    Args:
        outcome: of a reading of E texts, their outcomes (E, 1), differentiable.
    """
    model = replicas.model
    found = {site: np.zeros((len(replicas.ids), model.width(site)), np.float32) for site in sites}
    for rows in replicas.batches():
        for site, slope in _slopes(replicas, rows, sites, outcome).items():
            found[site][rows] = slope.float().cpu().numpy()
    return found


def _slopes(
    replicas: Replicas, rows: np.ndarray, sites: Sequence[Site], outcome: Callable[[Reading], Tensor]
) -> dict[Site, Tensor]:
    moved: dict[Site, Tensor] = {}

    def move(x: Tensor, site: Site) -> Tensor:
        moved[site] = torch.zeros_like(x[:, -1], requires_grad=True)
        if replicas.places is not None:
            return x + moved[site][:, None] * replicas.places.to(x)[None, :, None]
        return x + torch.nn.functional.pad(moved[site][:, None], (0, 0, x.shape[1] - 1, 0))

    with torch.enable_grad(), ExitStack() as stack:
        for site in sites:
            stack.callback(replicas.model.tap_point(site).attach(partial(move, site=site)).remove)
        total = outcome(replicas.read(rows)).sum()
        return dict(zip(sites, torch.autograd.grad(total, [moved[site] for site in sites]), strict=True))
