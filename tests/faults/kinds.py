"""What moescope writes, each in two versions, with what reading one gives."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

import moescope
from moescope.capture import ActivationStore
from moescope.capture.moments import Moments
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.models import load as load_model
from moescope.models.gated import gated_mlps
from moescope.routing.export import export_parquet
from moescope.routing.store import load_trace, save_trace
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.store import load_exit
from moescope.runtime.mask import PruneMask
from moescope.runtime.monitor import load_monitor
from moescope.runtime.route.store import ModelRouter, load_router
from moescope.runtime.targets import Domain, Targets, load_targets
from moescope.studies.atlas.page import Page
from moescope.studies.distill.save import DistilledStudent, load_student, save_student
from moescope.studies.distill.students import Student
from moescope.studies.residency.files import PlacementFiles
from moescope.studies.sparsify.build import write_sparse
from moescope.studies.sparsify.methods import coded
from moescope.studies.sparsify.settings import Format
from moescope.study.checkpoint import Checkpoint
from moescope.study.result import Artifact, StudyResult
from moescope.types import Claim, Site
from tests.architectures import tiny_model
from tests.made_artifacts import exit_classifier, monitor, student
from tests.synthetic_result import synthetic_result
from tests.test_exits_route import on
from tests.test_routing_trace_store import make

Write, Read = Callable[[Path], object], Callable[[Path], Any]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of output."""

    name: str
    place: str
    """its name in a folder"""
    old: Write
    new: Write
    """in the place of what ``old`` wrote, or of nothing"""
    read: Read
    """something that compares; InputError where it cannot be read"""
    unread: tuple[str, ...] = ()
    """files that reading does not look at, as a pattern each"""
    apart: bool = True
    """a folder, in which a user's own file may stand"""
    replaced: bool = True
    """an older one gives way to it"""
    whole: bool = True
    """its name is there only once all of it is; a store is resumed instead"""


def kinds(work: Path) -> dict[str, Kind]:
    """All kinds by name; ``work`` is a folder for what they are made from."""
    model = load_model("dense-tiny", head=True)
    router_model = tiny_model("llama")
    students = [student(seed) for seed in (0, 1)]
    masks = [PruneMask({0: np.arange(8) % 3 != n, 2: np.arange(8) % 2 == n}, {"model": "m", "n": n}) for n in (0, 1)]
    exits = [exit_classifier(model, sign) for sign in (1, -1)]
    routers = [ModelRouter(on(router_model, "residual", layer), router_model) for layer in (0, 1)]
    moe = load_model("moe-tiny")
    monitors = [monitor(moe, n) for n in (0.0, 1.0)]
    plans = [Targets("m", "f", {"0": 4}, {"all": Domain({"0": [n]}, ["layers.0.experts.up"])}) for n in (0, 1)]
    copies = [_copy(model, work / f"model{n}", n) for n in (0, 1)]
    sparse = [_sparse(tiny_model("llama", head=True), work / f"sparse{n}", n) for n in (0, 1)]
    traces = [make(seed=n) for n in (0, 1)]
    moments = [
        Moments(np.full((1, 2), n + 1), *(np.full((1, 2, 1, 4), n + 1.0) for _ in range(2)), (Site("resid", 0),))
        for n in (0, 1)
    ]

    def result(
        name: str, parts: list[Artifact], key: str, read: Read, also: Mapping[str, Sequence[Artifact]] = {}, **more: Any
    ) -> Kind:
        made = [{key: part} | {other: ones[n] for other, ones in also.items()} for n, part in enumerate(parts)]
        both = [dataclasses.replace(_result(n), artifacts=made[n]) for n in (0, 1)]
        save = [lambda at, r=r: r.save(at, overwrite=True, figures=False) for r in both]
        return Kind(name, "out", save[0], save[1], lambda at: (_said(moescope.load(at)), read(at)), **more)

    drawn = [synthetic_result(("topic",), seed=n, n=60, optional=False) for n in (0, 1)]
    drawn = [StudyResult("circuits", {"n": n}, r.claims, tables={"layers": r.tables["layers"]}) for n, r in enumerate(drawn)]
    save = [lambda at, r=r: r.save(at, overwrite=True) for r in drawn]
    found = [
        Kind(
            "result with figures and page", "out", *save, lambda at: (_said(moescope.load(at)), _drawn(at)),
            unread=("figures/*", "report.html"),
        ),
        result("result with a classifier", list(exits), "exit/a", lambda at: _heads(load_exit(at / "exit" / "a", model))),
        result("result with a router", list(routers), "route", lambda at: _router(load_router(at / "route", router_model))),
        result("result with a mask", list(masks), "mask", lambda at: _mask(at / "mask" / "mask.safetensors")),
        result(
            "result with a student",
            [DistilledStudent(s, "f", 1) for s in students],
            "students/a",
            lambda at: _weights(load_student(at / "students" / "a" / "student.safetensors")),
        ),
        result(
            "result with placement files",
            [PlacementFiles((0, 2), np.roll(np.tile(np.arange(4), (2, 1)), n, 1), 2, np.ones((2, 4))) for n in (0, 1)],
            "placement/2",
            lambda at: (at / "placement" / "2" / "sglang.json").read_text(),
        ),
        result(
            "result with a monitor",
            list(monitors),
            "monitor",
            lambda at: str(load_monitor(at / "monitor", moe).thresholds),
        ),
        result("result with targets", list(plans), "targets", lambda at: str(load_targets(at / "targets"))),
        result("converted checkpoint", list(copies), "checkpoint", lambda at: load_model(at).fingerprint),
        result("sparse checkpoint", list(sparse), "checkpoint", lambda at: load_model(at).fingerprint),
        result(
            "pruned checkpoint",  # an exported one is a checkpoint too
            list(copies),
            "checkpoint",
            lambda at: (load_model(at).fingerprint, _mask(at / "mask" / "mask.safetensors")),
            also={"mask": masks},
        ),
        result("atlas", [Page(f"<p>{n}</p>") for n in (0, 1)], "atlas", lambda at: (at / "atlas" / "index.html").read_text()),
        Kind(
            "classifier alone", "exit", *[lambda at, e=e: e.write(at) for e in exits], lambda at: _heads(load_exit(at, model)),
            whole=False,
        ),
        Kind(
            "router alone", "route", *[lambda at, r=r: r.write(at) for r in routers],
            lambda at: _router(load_router(at, router_model)), whole=False,
        ),
        *[
            Kind(
                f"mask alone ({end})", f"mask.{end}", *[lambda at, m=m: m.save(at) for m in masks],
                _mask, apart=False,
            )
            for end in ("safetensors", "json")
        ],
        Kind(
            "student alone", "s.safetensors", *[lambda at, s=s: save_student(s, at) for s in students],
            lambda at: _weights(load_student(at)), apart=False,
        ),
        Kind(
            "moments, checkpoints", "m.safetensors", *[lambda at, m=m: m.save(at) for m in moments],
            lambda at: _sum(Moments.load(at).mean), apart=False,
        ),
        Kind(
            "routing trace", "trace", *[lambda at, t=t: save_trace(t, at, overwrite=True, shard_tokens=12) for t in traces],
            lambda at: _sum(load_trace(at).ids, str(load_trace(at).sequences)), whole=False,
        ),
        Kind(
            "trace as Parquet", "t.parquet", *[lambda at, t=t: export_parquet(t, at, overwrite=True) for t in traces],
            lambda at: _table(at), apart=False, unread=("*",),  # for others to read
        ),
        Kind(
            "store of activations", "store", *[lambda at: _collect(at, model)] * 2,
            lambda at: _sum(ActivationStore.open(at).read().values), replaced=False, whole=False,
        ),
    ]  # fmt: skip
    return {kind.name: kind for kind in found}


def _result(n: int) -> StudyResult:
    table = pd.DataFrame({"a": np.arange(5) + n, "b": list("vwxyz")})
    return StudyResult("x", {"seed": n}, (Claim(f"claim {n}", float(n)),), tables={"rows": table})


def _said(result: StudyResult) -> str:
    return str(result.json()) + "".join(t.to_json() for t in result.tables.values())


def _drawn(at: Path) -> list[str]:
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in [*sorted((at / "figures").iterdir()), at / "report.html"]]


def _sum(array: np.ndarray, more: str = "") -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes() + more.encode()).hexdigest()


def _mask(at: Path) -> str:
    return str(PruneMask.load(at).keep)


def _heads(classifier: ExitClassifier) -> str:
    return _sum(np.concatenate([w.ravel() for w in classifier.heads.weight]), f"{classifier.threshold}{classifier.classes}")


def _router(router: Any) -> str:
    return str(router.layer) + _sum(router.basis)


def _weights(student: Student) -> str:
    return _sum(np.concatenate([t.detach().numpy().ravel() for t in student.state_dict().values()]))


def _copy(model: LoadedModel, folder: Path, n: int) -> Checkpoint:
    module = model.module
    if not folder.exists():
        module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        if n:
            tensors = load_file(folder / "model.safetensors")
            save_file({k: v + n for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return Checkpoint(folder)


def _sparse(model: LoadedModel, folder: Path, n: int) -> Checkpoint:
    if not folder.exists():
        mlps = gated_mlps(model)
        write_sparse(model, coded(mlps, 6), [mlp.neurons // (2 + n) for mlp in mlps], Format(0.5, 3, 6), folder)
    return Checkpoint(folder)


def _table(at: Path) -> str:
    try:
        return pd.read_parquet(at).to_csv()
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error


def _collect(at: Path, model: LoadedModel) -> object:
    texts = [f"text {i}" for i in range(6)]
    return ActivationStore.collect(at, model, texts, [Site("resid", 0)], shard_texts=2)
