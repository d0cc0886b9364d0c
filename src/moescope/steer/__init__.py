"""Interventions on a running model: replace neurons, erase directions, many sets of them in one forward pass."""

from moescope.steer.edits import Edit, Intervention, editing
from moescope.steer.intervene import intervene
from moescope.steer.many import intervene_many, neuron_edits
from moescope.steer.resume import resumed

__all__ = ["Edit", "Intervention", "editing", "intervene", "intervene_many", "neuron_edits", "resumed"]
