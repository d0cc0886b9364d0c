"""What the source reports: "Task-Conditioned Routing Signatures in Sparse Mixture-of-Experts Transformers", arXiv 2603.11114.

The full record is in `study/published`; the names below are the figures that claims stand beside. All are of
OLMoE-1B-7B-0125-Instruct on 80 prompts.
"""

from __future__ import annotations

from moescope.study.published import record
from moescope.types import Published

RECORD = record("routing_signatures")

WITHIN, ACROSS = RECORD["within_cosine"][0], RECORD["across_cosine"][0]
D = RECORD["cohens_d"]
ACCURACY, MACRO_F1 = RECORD["accuracy"][0], RECORD["macro_f1"]
ORDER = RECORD["order"]
PEAK_LAYER, LAYERS = RECORD["peak_layer"], RECORD["layers"]


def given(value: float | str, words: str = "") -> Published:
    """A figure of the source."""
    source = f"arXiv 2603.11114, {RECORD['model']}, {RECORD['protocol']['prompts']} prompts"
    return Published(value, f"{source}, {words}" if words else source)
