"""What a student costs: multiply-adds with the router, and bytes of weights read."""

from __future__ import annotations

from dataclasses import dataclass

from moescope.studies.distill.evaluate import Evaluation
from moescope.studies.distill.spec import StudentSpec, key_grid
from moescope.studies.distill.students import LayerShape, Student

LARGE_BATCH = 1024


@dataclass(frozen=True)
class Cost:
    """Per token, of one student. Biases, softmax and top-k are not counted: they are O(neurons)."""

    active_neurons: int
    """the published axis"""
    multiply_adds: int
    """router, shared and chosen neurons, skip"""
    router_multiply_adds: int
    parameters: int
    bytes_batch_1: int
    """float32 weight bytes read for one token alone"""
    bytes_large_batch: float
    """float32 weight bytes read per token in a batch of :data:`LARGE_BATCH`, each weight read once a batch; experts by the
    measured load"""


def cost(student: Student, evaluation: Evaluation) -> Cost:
    """The cost of a student with the load that it was measured to have."""
    spec, shape = student.spec, student.shape
    total, router, expert = spec_cost(spec, shape)
    always = total - spec.active * expert  # every token reads these weights, each once
    touched = evaluation.touched(LARGE_BATCH) or 0.0
    return Cost(
        active_neurons=spec.active_neurons,
        multiply_adds=total,
        router_multiply_adds=router,
        parameters=sum(p.numel() for p in student.parameters()),
        bytes_batch_1=4 * total,
        bytes_large_batch=4 * (always + touched * expert) / LARGE_BATCH,
    )


def spec_cost(spec: StudentSpec, shape: LayerShape) -> tuple[int, int, int]:
    """Multiply-adds of one token (= weights read for it): in all, of the router, and of one chosen expert.

    A transcoder's encoder is its router: every pre-activation is computed, and a chosen feature costs its decoder row.
    """
    always = spec.shared * per_neuron(shape, shape.glu)
    router = expert = 0
    if spec.kind == "skip-transcoder":
        always += shape.d_in * shape.d_out
    if spec.kind == "moe":
        router = router_multiply_adds(spec, shape.d_in)
        expert = spec.width * per_neuron(shape, shape.glu and spec.activation == "model")
    elif spec.kind != "dense":
        router, expert = spec.experts * shape.d_in, shape.d_out
    return always + router + spec.active * expert, router, expert


def router_multiply_adds(spec: StudentSpec, d: int) -> int:
    """Of one token."""
    if spec.router == "full":
        return spec.experts * d
    if spec.router == "low-rank":
        return spec.rank * (d + spec.experts)
    return spec.rank * d + sum(key_grid(spec.experts)) * spec.rank // 2


def per_neuron(shape: LayerShape, glu: bool) -> int:
    """Multiply-adds of one neuron."""
    return shape.d_in * (2 if glu else 1) + shape.d_out
