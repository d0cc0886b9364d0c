"""Interventions on a running model: replace neurons, erase directions, many sets of them in one forward pass; ban, force,
boost and scale experts; and what either does to the loss.
"""

from moescope.intervene.edits import Edit, Intervention, editing
from moescope.intervene.experts import Expert, ExpertEdits, steer_experts
from moescope.intervene.intervene import intervene
from moescope.intervene.resume import resumed

__all__ = [
    "Edit",
    "Expert",
    "ExpertEdits",
    "Intervention",
    "editing",
    "intervene",
    "resumed",
    "steer_experts",
]
