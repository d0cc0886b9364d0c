"""What the three studies report, as they report it, one JSON record each.

``hidden_moe``: Choi (2025), "Hidden Mixture-of-Experts", doi 10.5281/zenodo.17381003.
``routing_signatures``: "Task-Conditioned Routing Signatures in Sparse Mixture-of-Experts Transformers", arXiv 2603.11114.
``secret_moe``: "Secret mixtures of experts inside your LLM", arXiv 2512.18452.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, Literal


def record(source: Literal["hidden_moe", "routing_signatures", "secret_moe"]) -> dict[str, Any]:
    """The figures of one study by name."""
    text = resources.files(__package__).joinpath(f"{source}.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
