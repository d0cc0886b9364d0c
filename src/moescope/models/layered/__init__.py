"""A causal language model run layer by layer from its files: one layer's weights are in memory at a time."""

from moescope.models.layered.open import open_layered, without_weights
from moescope.models.layered.run import Edit, Layered, Pass, whole

__all__ = ["Edit", "Layered", "Pass", "open_layered", "whole", "without_weights"]
