"""The part of a distillation study that reads one student's experts: what they answer, and what they are near."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from moescope.errors import InputError
from moescope.stats import paired_bootstrap_difference
from moescope.studies.distill.categories import category_case
from moescope.studies.distill.layer_data import pieces
from moescope.studies.distill.neighbours import circuit_overlap, nearest_directions, nearest_neurons, pairing_null
from moescope.studies.distill.reading import document_uses, read_experts
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.students import Student
from moescope.studies.distill.teacher import Teacher
from moescope.study.run import Run
from moescope.study.verdicts import Case, Effect, beyond_draws
from moescope.tasks.passages import load_passages
from moescope.types import Circuit, Claim, Control

_RUN = Run()


def expert_study(
    teacher: Teacher,
    name: str,
    student: Student,
    texts: Sequence[str],
    settings: DistillSettings,
    *,
    untrained: Student,
    circuits: Mapping[str, Circuit] | None = None,
    dictionary: Tensor | None = None,
    characters: int = 2048,
    run: Run = _RUN,
) -> tuple[dict[str, pd.DataFrame], list[Case | Claim]]:
    """Tables ``experts`` and, with circuits, ``expert_circuits``, and what they say.

    Tokens and contexts are of ``texts`` and of the shipped category passages, cut to ``characters``; the lift is of the
    passages alone. Neurons are compared where the layer is a plain MLP.

    Args:
        name: of the student, for claims.
        settings: ``n_permutations`` and the margins are used.
        untrained: the student as it began, whose experts' categories stand beside.
        dictionary: directions (n, d_out).
    """
    passages = [(part, p.category, p.group) for p in load_passages() for part in pieces([p.text], characters)]
    parts, categories, groups = (list(side) for side in zip(*passages, strict=True))
    table = read_experts(
        teacher,
        student,
        [*texts, *parts],
        categories=[*[None] * len(texts), *categories],
        groups=[*(f"text {i}" for i in range(len(texts))), *groups],
        batch_tokens=run.batch_tokens,
        n_permutations=settings.n_permutations,
    )
    tables = {"experts": table}
    experts = [int(e) for e in table["expert"]]
    if not experts:
        words = "none to read: train it for longer; a count, so without an interval"
        return tables, [Claim(f"experts of {name} that run at least five times", 0, words=words)]
    family, shuffles = f"experts of {name}", settings.n_permutations
    uses, before = (
        document_uses(teacher, s, parts, categories, groups, experts=e, batch_tokens=run.batch_tokens)
        for s, e in ((student, experts), (untrained, None))
    )
    lift = math.log(settings.margin_ratio)
    claims: list[Case | Claim] = [category_case(name, uses, before, lift, family, n_permutations=shuffles, seed=run.seed)]
    try:
        neurons = teacher.neurons
    except InputError:
        neurons = None  # a block of experts
    if neurons is not None:
        near = nearest_neurons(student, neurons, experts, teacher.layer, circuits)
        tables["experts"] = tables["experts"].merge(near, on="expert")
        own, draws = pairing_null(student, neurons, experts, draws=shuffles, seed=run.seed)
        claims.append(
            Case(
                f"similarity of experts of {name} to their nearest neurons: they are the layer's own",
                own,
                beyond_draws(own, draws, "with write directions dealt out anew", settings.margin, share=False),
                control=Control("write directions dealt out anew", float(draws.mean())),
                family=family,
                words=f"mean over the {len(experts)} most used, 1 is a copy; the interval is of the difference",
            )
        )
        if circuits:
            tables["expert_circuits"] = circuit_overlap(near, circuits, teacher.layer, len(neurons.w_in))
            overlaps = tables["expert_circuits"].to_dict("records")
            claims += [overlap_case(name, row, settings.margin, family) for row in overlaps]
    if dictionary is not None:
        near = nearest_directions(student, dictionary, experts, seed=run.seed)
        tables["experts"] = tables["experts"].merge(near, on="expert")
        claims.append(_direction_case(name, near, len(dictionary), settings.margin, run.seed))
    return tables, claims


def overlap_case(name: str, row: Mapping[Any, Any], margin: float, family: str) -> Case | Claim:
    """That a student's experts sit at a circuit's neurons: a row of ``expert_circuits`` against random sets, two-sided."""
    task, here = row["task"], int(row["circuit_neurons"])
    statement = f"neurons of the {task} circuit that experts of {name} sit at: more than random ones"
    if not here:
        why = "the circuit has no mlp_act neuron in this layer"
        return Claim(statement, 0, outcome="not tested", words=why)
    gap, low, high = ((row["overlap"] - row[other]) / here for other in ("expected", "most", "least"))
    return Case(
        statement,
        int(row["overlap"]),
        Effect(gap, low, high, "random sets of neurons", margin, float(row["p"]), unit="of the circuit"),
        control=Control("random sets of neurons", float(row["expected"])),
        family=family,
        words=f"of {here} in this layer, among the {row['expert_neurons']} nearest neurons of experts; the interval is of the "
        f"difference",
    )


def _direction_case(name: str, near: pd.DataFrame, directions: int, margin: float, seed: int) -> Case | Claim:
    own, chance = near["direction_cosine"], near["direction_chance"]
    statement = f"cosine of experts of {name} to the nearest dictionary direction: nearer than random directions"
    control = Control("random directions", float(chance.mean()))
    if len(near) < 2:
        return Claim(statement, float(own.mean()), control=control, outcome="not tested", words="a single expert")
    found = paired_bootstrap_difference(own, chance, seed=seed)
    return Case(
        statement,
        float(own.mean()),
        Effect(found.value, found.low, found.high, "random directions", margin, found.p, share=False),
        control=control,
        words=f"mean over {len(near)} experts, {directions} directions; the interval is of the difference, over experts",
    )
