"""Datasets in the Hub's layout: by id, or from a local folder laid out the same way. No remote code is ever run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from moescope.errors import InputError
from moescope.files.text import check_pointers
from moescope.tasks.sources import Rows, first_line


def hub_rows(
    source: str,
    *,
    config: str | None,
    split: str | None,
    revision: str | None,
    context: str,
    instead: str,
    columns: list[str] | None = None,
    label: str = "label",
) -> Rows:
    """Read one split of a dataset.

    Parameters
    ----------
    source : Hub id (``org/name``) or local folder
    config : configuration (subset) name; needed where the dataset has several
    split : needed where the dataset has several
    context : what the user wrote, for messages
    instead : what to use when the Hub cannot be reached, for messages
    columns : read only these, where present; None for all
    label : the column whose ClassLabel names, if it has any, become the class names

    Raises
    ------
    InputError
        One line, when the dataset cannot be reached or read or the config or split is unknown.
    """
    import datasets

    folder = Path(os.path.expanduser(source))
    local = folder.is_dir()
    if local:
        check_pointers(folder)
    elif source.startswith(("/", ".", "~")) or source.count("/") > 1 or "\\" in source:
        raise InputError(f"{context}: no folder {source}; write hf:org/name for the Hub or the path of a dataset folder")
    path = str(folder) if local else source
    # `datasets` raises from many packages (HTTP clients, pyarrow, fsspec); the user's line is the same for all.
    try:
        if split is None:
            splits = datasets.get_dataset_split_names(path, config_name=config, revision=revision)
            if len(splits) > 1:
                raise InputError(f"{context}: the dataset has several splits; add split= with one of {', '.join(splits)}")
            split = splits[0]
        table: Any = datasets.load_dataset(path, name=config, split=split, revision=revision)
    except InputError:
        raise
    except Exception as error:
        why = first_line(error)
        # These messages of `datasets` list what there is; they speak of the request, not of the connection.
        if isinstance(error, ValueError) and ("split" in why or "onfig" in why):
            listed = " ".join(str(error).split("\n")[:2])
            message = f"{context}: {listed}; choose with config= and split="
        elif local:
            message = f"{context}: cannot read the dataset folder {path} ({why}); check its data files"
        else:
            message = f"{context}: cannot read {source} from the Hub ({why}); offline, use {instead}"
        raise InputError(message) from error
    names = tuple(getattr(table.features.get(label), "names", None) or ())
    if columns is not None:
        table = table.select_columns([c for c in table.column_names if c in columns])
    origin = f"{source} ({split})"
    return Rows(table.to_list(), list(table.column_names), origin, "row", list(range(1, len(table) + 1)), names)
