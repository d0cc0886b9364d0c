"""Begin a student at the teacher's own neurons, its router at the inputs that drive them."""

from __future__ import annotations

import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.studies.distill.students import Neurons, Student
from moescope.studies.distill.teacher import MlpNeurons


@torch.no_grad()
def start_from_teacher(student: Student, neurons: MlpNeurons, sample: Tensor, *, seed: int = 0) -> None:
    """Give shared and expert neurons the weights of teacher neurons, in the student's scaled coordinates.

    The strongest neurons (mean ‖contribution‖ over ``sample``, raw inputs (n, d)) are shared; experts take all of them in
    turn, as many rounds as there are experts for. An expert's router row is the mean input of a random half of the sample,
    weighted by its neurons' contribution: where in activation space it matters. Experts' outputs are multiplied by the
    number of active experts, since their gates sum to 1.

    Raises:
        InputError: the student's neurons have another form than the teacher's (linear experts, transcoders of a GLU layer).
    """
    spec = student.spec
    for bank in (student.shared, student.experts):
        if bank is not None and (
            type(bank.activation) is not type(neurons.activation) or (bank.w_lin is None) != (neurons.w_lin is None)
        ):
            raise InputError(f"start=teacher: the neurons of a {spec.kind} student differ in form from the teacher's")
    x = student.scaling.inputs(sample)
    strength = neurons.activations(sample).abs() * neurons.w_out.norm(dim=1)  # (n, F)
    order = strength.mean(0).argsort(descending=True)
    if student.shared is not None:
        _take(student.shared, neurons, order[torch.arange(spec.shared) % len(order)], student, 1.0)
    if student.experts is None:
        return
    take = order[torch.arange(spec.experts * spec.width) % len(order)]
    _take(student.experts, neurons, take, student, float(spec.active) if spec.kind == "moe" else 1.0)
    if student.router is None:
        return
    directions = torch.empty(spec.experts, x.shape[1])
    draw = torch.Generator().manual_seed(seed)
    per_round = max(1, len(order) // spec.width)
    for first in range(0, spec.experts, per_round):
        half = torch.randperm(len(x), generator=draw)[: max(1, len(x) // 2)]
        weight = strength[half] / strength[half].sum(0).clamp(min=1e-12)  # columns sum to 1
        centres = weight.T @ x[half] - x[half].mean(0)  # (F, d)
        stop = min(first + per_round, spec.experts)
        mine = take.reshape(spec.experts, spec.width)[first:stop]
        directions[first:stop] = centres[mine].mean(1)
    student.router.aim(directions)


def _take(bank: Neurons, neurons: MlpNeurons, which: Tensor, student: Student, factor: float) -> None:
    """Weights in scaled coordinates: x = scale · z + mean, y likewise."""
    scale = student.scaling
    bank.w_in.copy_(neurons.w_in[which] * scale.x_scale)
    bank.bias.copy_(neurons.bias[which] + neurons.w_in[which] @ scale.x_mean)
    if bank.w_lin is not None and bank.bias_lin is not None and neurons.w_lin is not None:
        bank.w_lin.copy_(neurons.w_lin[which] * scale.x_scale)
        bank.bias_lin.copy_(
            neurons.w_lin[which] @ scale.x_mean + (0.0 if neurons.bias_lin is None else neurons.bias_lin[which])
        )
    bank.w_out.copy_(neurons.w_out[which] * factor / scale.y_scale)
