"""Control tasks: random labels that are a function of the input (Hewitt and Liang 2019, "Designing and Interpreting
Probes with Control Tasks"). What a probe scores on one is memory of inputs, not knowledge of the task.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moescope.studies.circuits.features import Features
from moescope.tasks import slots


def control_labels(features: Features, tokenizer: Any, position: str | int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A random class for each kind of input, drawn by the task's class shares.

    The input of a labelled word is the word, as in the original; that of a final-token probe the final token; at other
    positions it is the whole text. Held-out rows can be right only where their input was met in training.

    Args:
        position: as in the study's settings.

    Returns:
        Labels (N,), and the number of kinds of input.
    """
    texts = [example.text for example in features.task.examples]
    if features.task.kind == "tokens":
        kinds = np.asarray([word.casefold() for word in slots(features.task)])
    elif position == "final":
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        kinds = np.asarray([row[-1] if len(row) else -1 for row in ids])
    else:
        kinds = np.asarray(texts)
    code = np.unique(kinds, return_inverse=True)[1]
    n_kinds = int(code.max()) + 1
    shares = np.bincount(features.y, minlength=features.n_classes) / len(features.y)
    for _ in range(100):
        drawn = rng.choice(features.n_classes, n_kinds, p=shares)
        if len(np.unique(drawn)) == features.n_classes:  # with very few kinds of input a class can go missing
            break
    return drawn[code].astype(np.int64), n_kinds
