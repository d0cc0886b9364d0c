"""What the source reports: "Task-Conditioned Routing Signatures in Sparse Mixture-of-Experts Transformers", arXiv 2603.11114.

The full record is ``published.json``; the names below are the figures that claims stand beside. All are of
OLMoE-1B-7B-0125-Instruct on 80 prompts.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

RECORD: dict[str, Any] = json.loads(resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8"))

WITHIN, ACROSS = RECORD["within_cosine"][0], RECORD["across_cosine"][0]
D = RECORD["cohens_d"]
ACCURACY, MACRO_F1 = RECORD["accuracy"][0], RECORD["macro_f1"]
ORDER = RECORD["order"]
PEAK_LAYER, LAYERS = RECORD["peak_layer"], RECORD["layers"]
