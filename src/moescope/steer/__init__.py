"""Interventions on a running model: replace neurons, erase directions, many sets of them in one forward pass; ban, force,
boost and scale experts; and what either does to the loss.
"""

from moescope.steer.edits import Edit, Intervention, editing
from moescope.steer.effects import EffectSettings
from moescope.steer.experts import Expert, ExpertEdits, steer_experts
from moescope.steer.intervene import intervene
from moescope.steer.many import intervene_many, neuron_edits
from moescope.steer.resume import resumed
from moescope.steer.study import Ablation, Steering, steer_study

__all__ = [
    "Ablation",
    "Edit",
    "EffectSettings",
    "Expert",
    "ExpertEdits",
    "Intervention",
    "Steering",
    "editing",
    "intervene",
    "intervene_many",
    "neuron_edits",
    "resumed",
    "steer_experts",
    "steer_study",
]
