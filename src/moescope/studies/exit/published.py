"""What the source reports of leaving early: Choi (2025), "Hidden Mixture-of-Experts", doi 10.5281/zenodo.17381003."""

from __future__ import annotations

from moescope.study.published import record

SOURCE = "Choi 2025, §4.8"
_SOURCE = record("hidden_moe")["early_exit_mistral"]
ACCURACY = {task: (_SOURCE[task]["layers_0_8"], _SOURCE[task]["layers_0_31"]) for task in ("certainty", "sentiment")}
"""task -> from a circuit of layers 0 to 8 of Mistral's 32, and from all"""
SHARE: float = _SOURCE["compute_at_layer_8"]
"""of the layers that are run up to layer 8"""
