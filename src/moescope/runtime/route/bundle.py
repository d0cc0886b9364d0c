"""A dispatcher as one folder: the router, a classifier for each task, and one file that says which belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.errors import InputError
from moescope.files.hashes import sha256_of
from moescope.files.names import inside
from moescope.files.remote import local
from moescope.runtime.exit.rule import stored_guarantee
from moescope.runtime.exit.store import FILE, load_exit, read_guarantee
from moescope.runtime.route.dispatch import Dispatcher
from moescope.runtime.route.store import ROUTER_FILE, ModelRouter, load_router
from moescope.study.artifacts import artifact_model, read_artifact, write_artifact
from moescope.study.names import slug
from moescope.study.settings import read_record

if TYPE_CHECKING:
    from moescope.models import LoadedModel

DISPATCH_FILE = "dispatch.safetensors"


@dataclass(frozen=True, eq=False)
class DispatchBundle(ModelRouter):
    """A dispatcher with the model that it was fitted on: what a study makes, also read as a router alone."""

    dispatcher: Dispatcher

    def write(self, folder: Path, /) -> Path:
        """Write router, classifiers and, last, ``dispatch.safetensors`` with the checksum of each into ``folder``; for
        :func:`load_dispatcher`.

        Raises:
            InputError: the folder cannot be written to.
        """
        super().write(folder)
        files = {ROUTER_FILE: sha256_of(folder / ROUTER_FILE)}
        for one in self.dispatcher.classifiers:
            place = f"{slug(one.task)}/{FILE}"
            one.write(folder / slug(one.task))
            files[place] = sha256_of(folder / place)
        guarantee = stored_guarantee(self.dispatcher.guarantee)
        return write_artifact(folder, "dispatch", self.model, {}, {"files": files, "guarantee": guarantee})


def load_dispatcher(folder: str | Path, model: LoadedModel | None = None, **load_options: Any) -> Dispatcher:
    """Read what ``moescope route --act`` saved: its result, or the folder ``route`` in it. Without ``model`` the model is
    loaded by its name, with ``load_options``.

    Raises:
        InputError: the folder is no such router, a file of it is damaged or of another run, or it belongs to another model.
    """
    folder = local(folder)
    folder = folder if (folder / DISPATCH_FILE).is_file() else folder / "route"
    if not (folder / DISPATCH_FILE).is_file():
        raise InputError(
            f"{folder.parent} holds no router that acts ({DISPATCH_FILE}); moescope route --act makes one in OUT/route"
        )
    data, _ = read_artifact(folder, "dispatch")
    try:
        known = read_record(_Stored, {name: data[name] for name in ("files", "guarantee")})
        guarantee = read_guarantee(known.guarantee)
        for file, digest in known.files.items():
            if sha256_of(folder / inside(file)) != digest:
                raise ValueError(f"{file} is not the one that was saved with it")
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            f"{folder / DISPATCH_FILE} is damaged ({type(error).__name__}: {error}); run moescope route again"
        ) from error
    loaded = artifact_model(folder, data, model, load_options)
    router = load_router(folder, loaded)
    classifiers = tuple(load_exit(folder / slug(task), loaded) for task in router.tasks)
    try:
        return Dispatcher(router, classifiers, guarantee)
    except InputError as error:
        raise InputError(f"{folder}: {error}; run moescope route again") from error


@dataclass(frozen=True)
class _Stored:
    """What the file says."""

    files: dict[str, str]
    guarantee: dict[str, Any] | None
