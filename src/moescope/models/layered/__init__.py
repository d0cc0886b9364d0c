"""A causal language model run layer by layer from its files: one layer's weights are in memory at a time."""

from moescope.models.layered.run import Edit, Layered, Pass, open_layered, whole

__all__ = ["Edit", "Layered", "Pass", "open_layered", "whole"]
