"""The part of a distillation study that reads one student's experts: what they answer, and what they are near."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor

from moescope.errors import InputError
from moescope.studies.distill.claims import category_claim, overlap_claim
from moescope.studies.distill.layer_data import pieces
from moescope.studies.distill.neighbours import circuit_overlap, nearest_directions, nearest_neurons, pairing_null
from moescope.studies.distill.reading import read_experts
from moescope.studies.distill.students import Student
from moescope.studies.distill.teacher import Teacher
from moescope.study.verdicts import beyond_chance
from moescope.tasks.passages import load_passages
from moescope.types import Circuit, Claim


def expert_study(
    teacher: Teacher,
    name: str,
    student: Student,
    texts: Sequence[str],
    *,
    circuits: Mapping[str, Circuit] | None = None,
    dictionary: Tensor | None = None,
    characters: int = 2048,
    batch_tokens: int = 8192,
    seed: int = 0,
) -> tuple[dict[str, pd.DataFrame], list[Claim]]:
    """Tables ``experts`` and, with circuits, ``expert_circuits``, and what they say.

    Tokens and contexts are of ``texts`` and of the shipped category passages, cut to ``characters``; the lift is of the
    passages alone. Neurons are compared where the layer is a plain MLP.

    Args:
        name: of the student, for claims.
        dictionary: directions (n, d_out).
    """
    read, groups = list(texts), [f"text {i}" for i in range(len(texts))]
    categories: list[str | None] = [None] * len(texts)
    for passage in load_passages():
        for part in pieces([passage.text], characters):
            read.append(part)
            categories.append(passage.category)
            groups.append(passage.group)
    table = read_experts(teacher, student, read, categories=categories, groups=groups, batch_tokens=batch_tokens)
    tables = {"experts": table}
    experts = [int(e) for e in table["expert"]]
    if not experts:
        return tables, [Claim(f"experts of {name} that run at least five times", 0, note="none to read: train it for longer")]
    claims = [category_claim(name, table)]
    try:
        neurons = teacher.neurons
    except InputError:
        neurons = None  # a block of experts
    if neurons is not None:
        near = nearest_neurons(student, neurons, experts, teacher.layer, circuits)
        tables["experts"] = tables["experts"].merge(near, on="expert")
        own, null, p = pairing_null(student, neurons, experts, seed=seed)
        claims.append(
            Claim(
                f"similarity of experts of {name} to their nearest neurons",
                own,
                null=null,
                p=p,
                verdict=beyond_chance(p),
                note=f"mean over the {len(experts)} most used, 1 is a copy; null: their write directions dealt out anew",
            )
        )
        if circuits:
            tables["expert_circuits"] = circuit_overlap(near, circuits, teacher.layer, len(neurons.w_in))
            claims += [overlap_claim(name, row) for row in tables["expert_circuits"].to_dict("records")]
    if dictionary is not None:
        near = nearest_directions(student, dictionary, experts, seed=seed)
        tables["experts"] = tables["experts"].merge(near, on="expert")
        claims.append(
            Claim(
                f"cosine of experts of {name} to the nearest dictionary direction",
                float(near["direction_cosine"].median()),
                null=float(near["direction_chance"].median()),
                note=f"median over experts, {len(dictionary)} directions; null: random directions",
            )
        )
    return tables, claims
