"""A new start for experts that no token chooses: an optional remedy, not part of the published protocol."""

from __future__ import annotations

import torch
from torch import Tensor

from moescope.studies.distill.data import Block
from moescope.studies.distill.optimizer import RowAdam
from moescope.studies.distill.routers import FullRouter, LowRankRouter
from moescope.studies.distill.students import Student


@torch.no_grad()
def revive(student: Student, optimizer: RowAdam, dead: Tensor, block: Block, *, seed: int) -> int:
    """Aim dead experts at inputs that the student gets wrong, drawn with probability proportional to the squared error.

    Such an expert is chosen by inputs like its own (its router row, or encoder row, takes that input's direction at the
    usual norm of the living) and begins with no say (its output is zero), as Bricken et al. 2023 do for autoencoders. Its
    Adam moments are cleared. A product-key router shares its keys between experts and is left as it is.

    Args:
        dead: bool (experts,).
        block: raw training inputs and outputs.

    Returns:
        How many experts were given a new start.
    """
    targets = torch.nonzero(dead).flatten()
    if student.experts is None or not len(targets) or bool(dead.all()):
        return 0
    weights: list[Tensor]
    if student.router is None:
        weights = [student.experts.w_in]
    elif isinstance(student.router, FullRouter):
        weights = [student.router.weight]
    elif isinstance(student.router, LowRankRouter):
        weights = [student.router.up]
    else:
        return 0
    device = student.bias.device
    rows = torch.arange(min(4096, len(block.x)))
    x = student.scaling.inputs(block.x[rows].to(device))
    error = (student.run(x).y - student.scaling.outputs(block.y[rows].to(device))).square().sum(1)
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(error.double().cpu(), len(targets), replacement=True, generator=draw)
    directions = x[chosen]
    if isinstance(student.router, LowRankRouter):
        directions = directions @ student.router.down.T
    weight = weights[0]
    norm = weight[(~dead).to(device)].norm(dim=1).mean()
    weight[targets] = norm * torch.nn.functional.normalize(directions, dim=1)
    h = student.spec.width
    neurons = (targets[:, None] * h + torch.arange(h)).flatten()
    student.experts.w_out[neurons] = 0
    for parameter, first, second in zip(optimizer.parameters, optimizer.first, optimizer.second, strict=True):
        for owned, where in ((weight, targets), (student.experts.w_out, neurons), (student.experts.w_in, neurons)):
            if parameter is owned:
                first[where] = 0
                second[where] = 0
    return len(targets)
