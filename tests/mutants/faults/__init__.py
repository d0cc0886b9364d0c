"""Every fault, by study: one at least for each control and each split.

A fault is one wrong connection, such as a slip of the hand would make: the wrong rows, model, labels or basis, in code that
runs on and gives numbers. Snippets are short, of one line where they can be, and must stand exactly once.
"""

from __future__ import annotations

from tests.mutants.fault import Fault
from tests.mutants.faults import (
    answers,
    choice,
    chosen,
    circuits,
    circuits_related,
    circuits_used,
    cluster,
    distill,
    experts,
    images,
    labels,
    models,
    monitor,
    reading,
    residency,
    runtime,
    series,
    signatures,
    sparsify,
    study,
    targets,
    theory,
    traces,
)

FAULTS: tuple[Fault, ...] = (
    *answers.FAULTS,
    *circuits.FAULTS,
    *circuits_related.FAULTS,
    *circuits_used.FAULTS,
    *series.FAULTS,
    *signatures.FAULTS,
    *chosen.FAULTS,
    *choice.FAULTS,
    *cluster.FAULTS,
    *distill.FAULTS,
    *runtime.FAULTS,
    *experts.FAULTS,
    *labels.FAULTS,
    *images.FAULTS,
    *models.FAULTS,
    *monitor.FAULTS,
    *reading.FAULTS,
    *residency.FAULTS,
    *sparsify.FAULTS,
    *study.FAULTS,
    *traces.FAULTS,
    *targets.FAULTS,
    *theory.FAULTS,
)
