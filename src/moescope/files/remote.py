"""Addresses in object stores (``s3://``, ``gs://``, ``hf://`` …): read and written through a local copy of what stands there.

An object store has no rename, no lock and no half-written file. So what is written is made whole in the local copy, as
anywhere, and only then sent, with its manifest last: without that nothing of it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from moescope.errors import InputError
from moescope.files.cache import cache
from moescope.files.names import inside
from moescope.files.parse import parse_object

SCHEMES = ("s3", "gs", "hf", "memory")
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)}):/+(.+)", re.S)
_MANIFESTS = ("results.json", "manifest.json")
_VERSIONS = ("ETag", "etag", "oid", "blob_id", "mtime", "LastModified", "created")
"""by the names of fsspec's file systems"""
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
"""that read these, where they are installed"""
_PATIENCE = timedelta(minutes=1)  # for Google's store, which is asked again for a quarter of an hour otherwise
_OPENED: dict[Path, str] = {}
"""local copies of this process, with their addresses"""


def address(path: str | Path) -> str | None:
    """``path`` as an address; None where it is a path. A ``Path`` keeps one of the two slashes, which is enough."""
    found = _ADDRESS.fullmatch(str(path))
    return f"{found[1]}://{found[2].rstrip('/')}" if found else None


def shown(path: str | Path) -> str:
    """As it is said to a user: an address with both its slashes, or the path as it was given."""
    return address(path) or str(path)


def local(path: str | Path) -> Path:
    """A path as it is; of an address the local copy of what stands there, fetched where it is not the same any more.

    What is begun in a copy and was never sent stays until the address holds something else; what could not be sent is sent
    first.

    Raises:
        InputError: the store cannot be reached, or has no such place as its scheme asks for.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"{type(path).__name__} was given where a folder or file is named; give a text or a Path")
    place = address(path)
    if place is None:
        return Path(path)
    last = place.rpartition("/")[2]
    if last in ("", ".", ".."):
        raise InputError(f"{place}: name the file or folder itself")
    folder = Path(os.path.abspath(cache())) / "remote" / hashlib.sha256(place.encode()).hexdigest()[:16]
    copy = folder / last
    index = _read(folder / "index.json")
    with _named(place):
        whole = any((copy / name).is_file() for name in _MANIFESTS)
        if index.get("unsent") or (whole and not index):  # killed before it was sent, or meanwhile
            _OPENED[copy] = place
            publish(copy)
            index = _read(folder / "index.json")
        fs, root = _store(place)
        there = _listing(fs, root)
        if "" in there or there != index.get("there", {}):  # a file carries no manifest that would tell two of one size apart
            if copy.is_dir():
                shutil.rmtree(copy)
            copy.unlink(missing_ok=True)
            for name in filter(_plain, there):
                target = copy / name if name else copy
                target.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(f"{root}/{name}" if name else root, str(target))
            if _listing(fs, root) != there:
                raise InputError(f"{place} changed while it was read; read it again once nobody writes there")
            _write(folder, {"address": place, "there": there, "here": _stamps(copy)})
    _OPENED[copy] = place
    return copy


def publish(folder: Path) -> None:
    """Send the local copy of an address to where it belongs; nothing for any other folder.

    The manifest that stood there goes first and the new one comes last. Files that are as they were fetched are not sent.

    Raises:
        InputError: the store does not take it; says where the whole of it stands.
    """
    place = _OPENED.get(folder)
    if place is None:
        return
    index, stamps = _read(folder.parent / "index.json"), _stamps(folder)
    _write(folder.parent, {**index, "address": place, "unsent": True})
    try:
        fs, root = _store(place)
        there = _listing(fs, root)
        gone = [name for name in there if name in index.get("here", {}) and name not in stamps]
        for name in sorted({*gone, *(n for n in there if n in _MANIFESTS)}, key=lambda n: n not in _MANIFESTS):
            fs.rm_file(f"{root}/{name}")
        for name in sorted(stamps, key=lambda n: n in _MANIFESTS):
            if name in _MANIFESTS or name not in there or stamps[name] != index.get("here", {}).get(name):
                _send(fs, folder / name, f"{root}/{name}")
        _write(folder.parent, {"address": place, "there": _listing(fs, root), "here": stamps})
    except Exception as error:  # each store has its own
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{place} could not be written ({why[:300]}); the whole of it stands in {folder}") from error


def _send(fs: Any, file: Path, target: str) -> None:
    with file.open("rb") as source, fs.open(target, "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    if fs.size(target) != file.stat().st_size:
        raise OSError(f"{target} is shorter there than here")


def refuse(path: str | Path, mend: str) -> None:
    """Raises InputError where ``path`` is an address, which is not taken here."""
    if (place := address(path)) is not None:
        raise InputError(f"{place}: an address is not taken here; {mend}")


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """What a store has to say as one line about ``place``."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each store has its own
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{place} cannot be read ({type(error).__name__}: {why[:300]}); check the address and the keys"
        ) from error


def _store(place: str) -> tuple[Any, str]:
    """A file system of fsspec's, and the place in it. Keys, regions and endpoints are taken from the environment."""
    import fsspec

    scheme, _, root = place.partition("://")
    package = _PACKAGES.get(scheme)
    if package is not None and importlib.util.find_spec(package) is None:
        try:
            return _arrow(scheme), root
        except (ImportError, AttributeError) as error:  # pyarrow may be built without
            raise InputError(f"{place}: {scheme}:// cannot be read here; pip install {package}") from error
    try:
        return fsspec.filesystem(scheme, skip_instance_cache=scheme != "memory"), root
    except (ImportError, ValueError) as error:
        raise InputError(f"{place}: {scheme}:// cannot be read here ({error})") from error


def _arrow(scheme: str) -> Any:
    """Arrow's own, which comes with pyarrow, in fsspec's clothes."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow import fs as arrow

    if scheme == "gs":
        return ArrowFSWrapper(arrow.GcsFileSystem(retry_time_limit=_PATIENCE), skip_instance_cache=True)
    options: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        protocol, _, host = endpoint.rpartition("://")
        options = {"endpoint_override": host.rstrip("/"), "scheme": protocol or "https"}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return ArrowFSWrapper(arrow.S3FileSystem(region=region, **options), skip_instance_cache=True)


def _listing(fs: Any, root: str) -> dict[str, list[Any]]:
    """Every file below ``root``, by its path from there, with what tells its versions apart; a file itself as ``""``."""
    try:
        info = fs.info(root)
    except FileNotFoundError:
        return {}
    if info["type"] == "file":
        return {"": _version(info)}
    base, found = root.strip("/") + "/", {}
    for name, entry in _below(fs, root).items():
        if entry["type"] == "file":
            below = name.strip("/").removeprefix(base)
            # times are of whole seconds in places, and a manifest has the checksums of all else
            found[below] = _version(entry) + ([hashlib.sha256(fs.cat_file(name)).hexdigest()] if below in _MANIFESTS else [])
    return found


def _below(fs: Any, root: str) -> dict[str, dict[str, Any]]:
    """All that lies under a folder, asked for at once: Google's folders are only parts of names, and Arrow walks into none."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSelector

    if isinstance(fs, ArrowFSWrapper):
        found = fs.fs.get_file_info(FileSelector(root, recursive=True))
        return {i.path: {"type": "file" if i.is_file else "directory", "size": i.size, "mtime": i.mtime} for i in found}
    return dict(fs.find(root, detail=True))


def _plain(name: str) -> bool:
    """Whether it is a name that we may give a file of our own; what stands there under others is not ours."""
    try:
        return name == "" or bool(inside(name))
    except ValueError:
        return False


def _version(info: dict[str, Any]) -> list[Any]:
    return [info.get("size"), *(str(info[key]) for key in _VERSIONS if info.get(key))]


def _stamps(copy: Path) -> dict[str, list[int]]:
    """Size and time of every file of a local copy."""
    files = [p for p in sorted(copy.rglob("*")) if p.is_file() and not p.is_symlink()] if copy.is_dir() else []
    return {p.relative_to(copy).as_posix(): [p.stat().st_size, p.stat().st_mtime_ns] for p in files}


def _read(index: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return parse_object(index.read_bytes())
    return {}


def _write(folder: Path, values: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / "index.tmp"
    draft.write_text(json.dumps(values), encoding="utf-8")
    os.replace(draft, folder / "index.json")
