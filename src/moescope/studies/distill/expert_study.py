"""The part of a distillation study that reads one student's experts: what they answer, and what they are near."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.stats import benjamini_hochberg
from moescope.studies.distill.layer_data import pieces
from moescope.studies.distill.neighbours import circuit_overlap, nearest_directions, nearest_neurons, pairing_null
from moescope.studies.distill.reading import read_experts
from moescope.studies.distill.students import Student
from moescope.studies.distill.teacher import Teacher
from moescope.study.result import StudyResult, load
from moescope.tasks.passages import load_passages
from moescope.types import Circuit, Claim

_LEVEL = 0.05


def circuits_of(source: StudyResult | str | Path | None, model: LoadedModel) -> dict[str, Circuit]:
    """The circuits of a result, by task.

    Raises:
        InputError: it holds none, or is of another model.
    """
    if source is None:
        return {}
    result = source if isinstance(source, StudyResult) else load(source)
    where = result.meta.get("title") or "the result" if isinstance(source, StudyResult) else source
    if not result.circuits:
        raise InputError(f"--circuits: {where} holds no circuits; give a result of `moescope circuits`")
    if result.meta.get("fingerprint") != model.fingerprint:
        raise InputError(
            f"--circuits: {where} is of a model of fingerprint {result.meta.get('fingerprint')}, not {model.fingerprint}; "
            f"run `moescope circuits` on {model.name}"
        )
    return dict(result.circuits)


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
    claims = [_category_claim(name, table)]
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
                verdict="measured" if p < _LEVEL else "explained by chance",
                note=f"mean over the {len(experts)} most used, 1 is a copy; null: their write directions dealt out anew",
            )
        )
        if circuits:
            tables["expert_circuits"] = circuit_overlap(near, circuits, teacher.layer, len(neurons.w_in))
            claims += [_overlap_claim(name, row) for row in tables["expert_circuits"].to_dict("records")]
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


def _category_claim(name: str, table: pd.DataFrame) -> Claim:
    p = table["category_p"].to_numpy(dtype=float)
    tested = ~np.isnan(p)
    found = int((benjamini_hochberg(p[tested]) < _LEVEL).sum()) if tested.any() else 0
    return Claim(
        f"experts of {name} that prefer a category of text",
        f"{found} of {int(tested.sum())}",
        verdict="measured" if found else "explained by chance",
        note="of the most used; labels shuffled among documents, false discovery rate 5 %",
    )


def _overlap_claim(name: str, row: dict[str, object]) -> Claim:
    task, here, p = row["task"], row["circuit_neurons"], float(row["p"])  # type: ignore[arg-type]
    if not here:
        note = "the circuit has no mlp_act neuron in this layer: nothing to compare"
        return Claim(f"neurons of the {task} circuit that experts of {name} sit at", 0, note=note)
    return Claim(
        f"neurons of the {task} circuit that experts of {name} sit at",
        int(row["overlap"]),  # type: ignore[call-overload]
        null=float(row["expected"]),  # type: ignore[arg-type]
        p=p,
        verdict="measured" if p < _LEVEL else "explained by chance",
        note=f"of {here} in this layer, among {row['expert_neurons']} nearest neurons of experts; null: random sets",
    )
