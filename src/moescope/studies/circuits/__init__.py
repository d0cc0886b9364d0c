"""Task circuits of dense models: the neurons that carry a task, and whether they would by chance.

The study (:func:`circuits`), its series over checkpoints (:func:`dynamics`) and over sizes (:func:`scaling`), and its parts as
plain functions.
"""

from moescope.studies.circuits.formation import dynamics
from moescope.studies.circuits.scaling import scaling
from moescope.studies.circuits.settings import CircuitSettings, ScalingSettings, SearchSettings
from moescope.studies.circuits.study import circuits

__all__ = ["CircuitSettings", "ScalingSettings", "SearchSettings", "circuits", "dynamics", "scaling"]
