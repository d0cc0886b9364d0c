"""Readers of what moescope itself saves: stores, results, classifiers, routers, students, checkpoints, masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

import moescope
from moescope.capture.moments import Moments, moments
from moescope.capture.store import ActivationStore
from moescope.runtime.exit.store import load_exit
from moescope.runtime.mask import PruneMask
from moescope.runtime.monitor import load_monitor
from moescope.runtime.route.router import KnownPrompts, fit_router
from moescope.runtime.route.store import ModelRouter, load_router
from moescope.runtime.route.watch import name_tasks
from moescope.runtime.targets import Domain, Targets, load_targets
from moescope.studies.distill.layer_data import store_lengths
from moescope.studies.distill.neighbours import load_dictionary
from moescope.studies.distill.save import load_student, save_student
from moescope.studies.steer.neurons_effect import load_circuit
from moescope.types import Circuit, Claim, Control, Neuron, Published, Site
from tests.fuzz.registry import TEXTS, register, tiny, tiny_moe
from tests.made_artifacts import exit_classifier, monitor, student


def _make_store(folder: Path) -> None:
    ActivationStore.collect(folder / "store", tiny(), TEXTS, "resid:0;mlp_out:1", shard_texts=2)


def _read_store(folder: Path) -> None:
    store = ActivationStore.open(folder / "store")
    for site in store.sites:
        vectors = store.read(site)
        for row in range(len(vectors)):
            assert np.isfinite(vectors[row]).all()
    store_lengths(store)


register("activation store", _make_store, _read_store)


def _make_moments(folder: Path) -> None:
    moments(tiny(), TEXTS, "resid:0;resid:1", [0, 1, 0]).save(folder / "moments.safetensors")


def _read_moments(folder: Path) -> None:
    found = Moments.load(folder / "moments.safetensors")
    found.merge(found).total().variance()


def _make_checkpoint(folder: Path) -> None:
    moments(tiny(), TEXTS, "resid:0", [0, 1, 0], checkpoint=folder / "state.safetensors")


def _read_checkpoint(folder: Path) -> None:
    moments(tiny(), TEXTS, "resid:0", [0, 1, 0], checkpoint=folder / "state.safetensors").total().variance()


register("moments", _make_moments, _read_moments)
register("checkpoint", _make_checkpoint, _read_checkpoint)


def _result() -> moescope.StudyResult:
    claims = (
        Claim(
            "neurons carry it",
            0.8,
            "H1",
            Published(0.9, "paper"),
            (0.7, 0.9),
            Control("chance", 0.5),
            0.01,
            0.02,
            "main",
            "holds",
        ),
        Claim("words", "many", outcome="descriptive", details={"a": [1, 2]}),
    )
    table = pd.DataFrame({"task": ["a", "b"], "k": [1, 2], "accuracy": [0.5, 0.9], "list": [[1], [2, 3]]})
    meta = {"title": "A title", "model": {"name": "m"}, "notes": ["a note"], "seed": 0, "rows": [{"task": "a"}]}
    mask = PruneMask({0: np.array([True, False])}, {"model": "m"})
    return moescope.StudyResult("made", meta, claims, _circuits(), {"accuracy": table}, {"mask": mask})


def _circuits() -> dict[str, Circuit]:
    return {"a": Circuit("a", (Neuron(Site("resid", 0), 3), Neuron(Site("resid", 1), 4)), (0.5, 0.25))}


def _read_result(folder: Path) -> None:
    result = moescope.load(folder / "out")
    result.table()
    page = result.report()
    assert page.lower().count("<script") == 1  # its own
    repr(result)
    for name in result.tables:
        result.table(name).to_string()


register("result", lambda f: _result().save(f / "out", figures=False), _read_result)


def _make_exit(folder: Path) -> None:
    exit_classifier(tiny()).write(folder)


def _read_exit(folder: Path) -> None:
    made = load_exit(folder, tiny())
    assert set(made.predict(list(TEXTS))) <= set(made.classes)
    if made.guarantee is not None:
        made.guarantee.text()


def _make_router(folder: Path) -> None:
    rng, model = np.random.default_rng(0), tiny()
    task = np.repeat([0, 1], 60)
    x = rng.standard_normal((120, model.d_model)) + 4 * task[:, None]
    known = KnownPrompts(x, rng.integers(5, 40, 120), task, np.arange(120).astype(str))
    ModelRouter(fit_router(known, known, ("a", "b"), source="residual", layer=1, rate=0.1), model).write(folder)


def _read_router(folder: Path) -> None:
    for named in name_tasks(load_router(folder, tiny()), tiny(), list(TEXTS)):
        assert 0 <= named.p <= 1


def _make_student(folder: Path) -> None:
    save_student(student(), folder / "student.safetensors", fingerprint="f", layer=1)


def _read_student(folder: Path) -> None:
    with torch.no_grad():
        assert torch.isfinite(load_student(folder / "student.safetensors")(torch.ones(3, 12))).all()


def _read_monitor(folder: Path) -> None:
    made = load_monitor(folder, tiny_moe())
    assert made(list(TEXTS)).dtype == bool
    made.promise.text()


def _make_targets(folder: Path) -> None:
    carried = {"all": Domain({"0": [1, 3]}, ["layers.0.experts.up"]), "code": Domain({"0": [3]}, [])}
    Targets("m", "f", {"0": 4}, carried, {"0": [2]}).write(folder)


def _read_targets(folder: Path) -> None:
    found = load_targets(folder)
    for name in found.places():
        found.lora_config(name)


register("exit classifier", _make_exit, _read_exit)
register("router", _make_router, _read_router)
register("monitor", lambda f: monitor(tiny_moe()).write(f), _read_monitor)
register("targets", _make_targets, _read_targets)
register("student", _make_student, _read_student)
for suffix in (".json", ".safetensors"):
    register(
        f"prune mask {suffix}",
        lambda f, s=suffix: PruneMask({0: np.arange(6) % 2 == 0, 2: np.arange(6) < 4}, {"model": "m"}).save(f / f"mask{s}"),  # type: ignore[misc]
        lambda f, s=suffix: (lambda mask: (mask.pruned, mask.ratio))(PruneMask.load(f / f"mask{s}")),  # type: ignore[misc]
    )
register(
    "circuit",
    lambda f: (f / "circuit.json").write_text(
        '{"neurons": [{"site": "resid", "layer": 3, "neuron": 17}, {"site": "mlp_out", "layer": 1, "neuron": 2}]}'
    ),
    lambda f: [str(n) for n in load_circuit(f / "circuit.json").neurons],
)


def _make_dictionary(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"W_dec": np.ones((6, 4), np.float32), "b": np.zeros(4, np.float32)}, folder / "sae.safetensors")


register("dictionary", _make_dictionary, lambda f: load_dictionary(f / "sae.safetensors", 4))
