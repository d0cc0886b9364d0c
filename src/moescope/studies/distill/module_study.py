"""Any module by name: distilled from what was recorded while the user's own loop, or the reading of texts or images, ran it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers.activations import ACT2FN

from moescope.capture import encode
from moescope.capture.activations import padded_batches
from moescope.capture.encode import model_limit
from moescope.capture.record import Recorded, record
from moescope.errors import InputError
from moescope.files.image import SUFFIXES
from moescope.models import LoadedModel
from moescope.models.inputs import BodyInputs
from moescope.studies.distill.baselines import baseline_fvu
from moescope.studies.distill.claims import distill_claims
from moescope.studies.distill.controls import control_pairs, distances
from moescope.studies.distill.data import ArrayPairs, Block, Split, count, split_units
from moescope.studies.distill.evidence import ACTIVATIONS, Evidence
from moescope.studies.distill.gathered import equal_cost_students, gathered, sizes
from moescope.studies.distill.layer_data import read_texts, units_of
from moescope.studies.distill.runs import Runs, run_students
from moescope.studies.distill.save import DistilledStudent
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.students import LayerShape
from moescope.study.names import slug
from moescope.study.protocol import Context
from moescope.study.result import Artifact, StudyResult
from moescope.study.rows import Rows
from moescope.tasks import load_task

_SHARES = (0.8, 0.1, 0.1)
_NULLS = ("gaussian", "kurtosis", "mixture", "shuffled-outputs")
_SMOOTH = {"tanh": "gelu_pytorch_tanh", "none": "gelu"}
_FUSED = {"GEGLU": "gelu", "SwiGLU": "silu", "ApproximateGELU": "quick_gelu"}


def distill_module(context: Context, store: Recorded, settings: DistillSettings) -> StudyResult:
    """Students of the module of ``store``, on what was recorded and on the controls.

    Raises:
        InputError: the module is no function of one vector, too few documents, or a control that needs a language model.
    """
    _check(settings)
    store.check_by_vector()
    run, name = context.run, f"{store.name} of {store.model}"
    shape, width = _shape(store.module, store.x.shape[1], store.y.shape[1])
    context.stages.read(store.x, store.y, store.documents)
    pairs = _pairs(context, store, settings, name)
    specs = settings.students()
    if settings.equal_cost:
        specs |= equal_cost_students(specs, shape, width)
    found: dict[str, Runs] = {}
    sources: dict[str, dict[str, float]] = {}
    baselines: list[pd.DataFrame] = []
    for data in (ACTIVATIONS, *settings.control):
        here = pairs
        if data != ACTIVATIONS:
            here = control_pairs(data, pairs, store, seed=run.seed)
            inputs, outputs = distances(here, pairs)
            said = f"inputs differ by {inputs:.2f} and outputs by {outputs:.2f} of the real ones' norm"
            context.control(data, differs=max(inputs, outputs) > 0.01, evidence=said)
        place, progress = context.stages.place(f"training on {data}"), context.counter(f"training on {data}")
        found[data] = run_students(here, specs, shape, settings, seed=run.seed, checkpoint=place, progress=progress)
        sources[data] = sizes(here, found[data].scaling)
        if not found[ACTIVATIONS].best:
            raise InputError("every student diverged; give lower ones", "lr")
        explained = context.stage(f"baselines on {data}", partial(baseline_fvu, here))
        baselines.append(pd.DataFrame({"data": data, "baseline": [*explained], "fvu": [*explained.values()]}))
    frames = gathered(found, baselines)
    mark = _fingerprint(store.module)
    best = found[ACTIVATIONS].best
    students: dict[str, Artifact] = {
        f"students/{slug(n)}": DistilledStudent(student, mark, store.name) for n, student in best.items()
    }
    return context.result(
        model=store.model,
        title=f"{store.name} of {store.model} distilled",
        claims=distill_claims(Evidence(frames, settings), shape, width),
        tables=frames,
        artifacts=students,
        module=store.name,
        fingerprint=mark,
        data={"source": pairs.name, "seen": store.seen, **{s: count(pairs, s) for s in ("train", "validation", "test")}},
        sources=sources,
        teacher={"d_in": shape.d_in, "d_out": shape.d_out, "activation": shape.activation, "glu": shape.glu, "width": width},
    )


def read_module(
    context: Context, model: LoadedModel, texts: Sequence[str] | str | Path | None, settings: DistillSettings
) -> Recorded:
    """Record a module of a loaded model while it reads texts, or, of a vision encoder, images.

    Of a text the first token is left out, and so is padding.

    Args:
        texts: as of :func:`moescope.distill`; of a vision encoder paths of images, or a folder of them; None: ``digits``.
    """
    assert settings.module is not None
    if model.reads_images:
        paths = _images(texts)
        context.stages.read(paths)
        encoded, documents = encode(model, paths), np.arange(len(paths))
    else:
        with context.noted():
            given = read_texts(texts)
        context.stages.read(given)
        parts, documents = units_of(given, 2 * (model_limit(model) or 1024), "drop")
        encoded = encode(model, parts, chat=False)
    inputs, report = BodyInputs(model), context.counter(f"reading {model.name}")
    done = 0
    with record(model, settings.module, most=_most(settings), seed=context.run.seed) as store, torch.no_grad():
        for batch in padded_batches(model, encoded, context.run.batch_tokens, "right"):
            keep = batch.mask.clone()
            if not model.reads_images:
                keep[:, 0] = False
            store.of(documents[batch.rows], keep)
            model.body(**inputs(batch.ids, batch.mask))
            done += len(batch.rows)
            report(done, len(encoded))
    return store


def _most(settings: DistillSettings) -> int:
    return max(2, settings.tokens or 1 << 18)


def _images(given: Sequence[str] | str | Path | None) -> list[str]:
    if given is None:
        return [example.text for example in load_task("digits").examples]
    if not isinstance(given, str | Path):
        return [str(path) for path in given]
    found = sorted(str(p) for p in Path(given).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise InputError(f"{given} holds no image ({', '.join(SUFFIXES)})", "texts")
    return found


def _check(settings: DistillSettings) -> None:
    if settings.layer is not None:
        raise InputError("a module is named, not counted; leave it out", "layer")
    if settings.start != "random":
        raise InputError("neurons of a module are not known by name; give random", "start")
    odd = next((c for c in settings.control if c not in _NULLS), None)
    if odd is not None:
        raise InputError(f"{odd} needs a layer of a language model; of a module: {', '.join(_NULLS)}", "control")


def _pairs(context: Context, store: Recorded, settings: DistillSettings, name: str) -> ArrayPairs:
    """No document is in two splits."""
    documents = store.documents.numpy()
    parts = split_units(np.ones(len(documents)), _SHARES, context.run.seed, documents)
    rows = context.rows(
        Rows(f"vectors of {name}", documents, fit=parts["train"], select=parts["validation"], judge=parts["test"])
    )
    used: dict[Split, np.ndarray] = {"train": rows.fit, "validation": rows.select, "test": rows.judge}
    blocks: dict[Split, Block] = {}
    for split, at in used.items():
        where = torch.from_numpy(at)
        blocks[split] = Block(store.x[where], store.y[where], None, store.documents[where])
    return ArrayPairs(name, blocks, buffer=settings.buffer)


def _shape(module: nn.Module, d_in: int, d_out: int) -> tuple[LayerShape, int | None]:
    """What a student takes over of a module: its activation, whether it is gated; and its inner width, where it is an MLP of
    one map up (or two, or two in one) and one down."""
    maps = [m for m in module.modules() if isinstance(m, nn.Linear)]
    ups = [m for m in maps if m.in_features == d_in]
    downs = [m for m in maps if m.out_features == d_out and m not in ups]
    activation = next((name for m in module.modules() if (name := _activation(m))), "relu")
    made, inner = [m.out_features for m in ups], downs[0].in_features if len(downs) == 1 else None
    if inner is not None and made in ([inner], [inner] * 2, [2 * inner]):
        return LayerShape(d_in, d_out, activation, made != [inner]), inner
    return LayerShape(d_in, d_out, activation, False), None


def _activation(module: nn.Module) -> str | None:
    """Its name in transformers. Of ``diffusers``' that hold their own map up and call no module the class's name tells."""
    kind = type(module).__name__
    if kind == "GELU":
        return _SMOOTH[str(getattr(module, "approximate", "none"))]
    if kind in _FUSED:
        return _FUSED[kind]
    return next(
        (n for n in ("relu", "silu", "gelu", "gelu_pytorch_tanh", "quick_gelu") if type(module) is type(ACT2FN[n])), None
    )


def _fingerprint(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
