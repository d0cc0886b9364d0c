"""``load_task``: from a specification to a task."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from moescope.errors import InputError, Note, check_count
from moescope.files.text import PACKED
from moescope.tasks.build import RenderedTask, normalise, require_classes, take_groups, task_sha256
from moescope.tasks.given import KINDS, given_rows, is_table
from moescope.tasks.hub import hub_rows
from moescope.tasks.images.load import COLUMN, IMAGE_PRESETS, check_table, folder_images, preset_images, table_images
from moescope.tasks.labels import encode_labels, graded_values, missing
from moescope.tasks.presets import PRESETS, SHIPPED, Preset
from moescope.tasks.questions import OPTIONS as _QUESTIONS
from moescope.tasks.questions import Asked, Questions, asked_of
from moescope.tasks.sources import SUFFIXES, Rows, names_file, read_file
from moescope.tasks.spec import TaskSpec, check_options, choice, parse_limit, parse_spec, suggest
from moescope.tasks.templates import Template, check_fields, field_text, parse_template, with_answers
from moescope.tasks.words import word_rows
from moescope.types import Example, LabelKind, Task

_COMMON = ("template", "answers", "limit")
_COLUMNS = ("text", "label", "group", "language", "positive", "kind", "tokens", "spans", *_QUESTIONS)
_HUB = ("config", "split", "revision")


@dataclass(frozen=True)
class _Draft:
    """Everything about a task but its rendered rows."""

    name: str
    source: str
    rows: Rows
    template: Template
    slot: list[str]
    labels: list[int]
    classes: tuple[str, ...]
    groups: list[str]
    languages: list[str] | None = None
    licence: str | None = None
    kind: LabelKind = "classes"
    values: list[float] | None = None
    spans: list[tuple[int, int]] | None = None
    asked: Asked | None = None


def load_task(
    spec: str | Path | Any, *, limit: int | None = None, seed: int = 0, name: str | None = None, **options: str
) -> Task:
    r"""Load a task from ``[NAME=]SOURCE[?key=value&…]``, a path, or a table in memory.

    SOURCE is a preset (see :data:`PRESETS`), a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file (packed with
    gzip, bz2 or xz too), or ``hf:`` with a Hub dataset id or a local folder in the Hub's layout. Options:

    * everywhere ``template=`` (a named template or a format string over the row's fields), ``answers=``
      (comma-separated, in class order) and ``limit=``;
    * files, tables and ``hf:`` also ``text=``, ``label=`` (columns, default ``text`` and ``label``), ``group=``,
      ``language=`` (columns, used when named), ``positive=`` (the label that is class 1 of a binary task), and ``kind=``:
      ``graded`` (the label is a number) or ``tokens`` (each word has a label: lists in the columns ``tokens=`` and ``label=``,
      default ``labels``; or in ``spans=`` of each text a list of [start, end, label]) or ``answers``; files also
      ``encoding=`` (default: found out); ``hf:`` also ``config=``, ``split=``, ``revision=``;
    * **questions** (``kind=answers``) that a model answers by itself: what is right stands in the column ``answer=`` (default
      ``answer``; several in a list), or follows from the label by the words of ``answers=``. ``check=`` is ``exact``,
      ``first`` (an answer begins so), ``contains``, ``number`` (its first) or ``last-number``; ``new_tokens=`` the most that
      are written; ``until=line|end`` where an answer ends; ``difficulty=`` a column; ``at=question|answer`` at which last
      token the model is read. A preset whose template asks takes ``kind=answers`` too;
    * **images**: a folder with a subfolder of images for each class, or a file or table with ``image=`` (the column of their
      paths, relative to the file and inside its folder) and ``label=``, ``group=``, ``positive=``, ``limit=``; the presets
      ``digits`` and ``digits-made``. Images of equal pixels share a group;
    * ``arithmetic``: ``digits=1-3``, ``operation=add|subtract|multiply``, ``rows=``, ``seed=``; ``halueval``:
      ``turn=one-turn|multi-turn|both``; ``uci-sentiment``: ``split=test|train|all``; presets on the Hub: ``split=``,
      ``config=``, ``revision=``, and ``path=`` for a local copy of the dataset.

    Row order is the source's. Rows that agree up to case, spacing and punctuation share a group unless a group column
    is given. ``limit`` takes whole groups, class-balanced as far as possible, drawn with ``seed``; a limit in the
    specification wins over the argument.

    Args:
        spec: a table is a DataFrame, a ``datasets.Dataset``, a list of rows or of (text, label), two lists (texts, labels), a
            dict of columns, or a dict from a label to its texts.
        name: of the task; wins over the specification's.
        options: the options above by keyword, such as ``text="sentence"``.

    Raises
    ------
    InputError
        One line naming the file, row, column or option, and the mend.

    >>> load_task({"good": ["fine", "nice"], "bad": ["poor", "dull"]}, name="mood").classes
    ('bad', 'good')
    """
    check_count("seed", seed, 0)
    parsed = _asked(spec, name, options)
    if not isinstance(spec, str | Path):
        images = COLUMN in parsed.options
        check_table(parsed) if images else check_options(parsed, (*_COMMON, *_COLUMNS))
        rows = given_rows(spec, text=parsed.options.get("text", "text"), label=parsed.options.get("label", "label"))
        if images:
            return table_images(rows, parsed, parsed.name or "task", rows.origin, None, parse_limit(parsed, limit), seed)
        draft = _table_draft(rows, parsed, parsed.name or "task", rows.origin)
    elif parsed.source in IMAGE_PRESETS:
        return preset_images(parsed, parse_limit(parsed, limit), seed)
    elif parsed.source in PRESETS:
        draft = _preset_draft(PRESETS[parsed.source], parsed)
    elif parsed.source.startswith("hf:") and not parsed.source.startswith("hf://"):  # which is an address
        draft = _hub_draft(parsed)
    elif isinstance(spec, Path) or names_file(parsed.source):
        path = Path(os.path.expanduser(parsed.source))
        shown = folder_images(path, parsed, parse_limit(parsed, limit), seed) if os.path.isdir(path) else None
        if shown is not None:
            return shown
        images = COLUMN in parsed.options
        check_table(parsed) if images else check_options(parsed, (*_COMMON, *_COLUMNS, "encoding"))
        name = parsed.name or path.name.removesuffix("".join(s for s in path.suffixes if s in (*SUFFIXES, *PACKED)))
        rows = read_file(path, parsed.options.get("encoding"))
        if images:
            return table_images(rows, parsed, name, f"file {path}", path.parent, parse_limit(parsed, limit), seed)
        draft = _table_draft(rows, parsed, name, f"file {path}")
    else:
        known = (*PRESETS, *IMAGE_PRESETS)
        near = suggest(parsed.source, known)
        raise InputError(
            f"task {spec!r}: unknown preset {parsed.source!r}{near}; presets: {', '.join(known)}; "
            f"or give a file ({', '.join(SUFFIXES)}) or hf:org/name"
        )
    return _render(draft, parsed, parse_limit(parsed, limit), seed)


def _asked(spec: Any, name: str | None, options: dict[str, str]) -> TaskSpec:
    if isinstance(spec, Task):
        raise InputError(f"task {spec.name!r} is loaded already; use it as it is")
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise InputError(f"a task's name is a text, not {name!r}", "name")
    odd = next((key for key, value in options.items() if not isinstance(value, str)), None)
    if odd is not None:
        raise InputError(f"{options[odd]!r} is not a text; write it as in a specification, {odd}=VALUE", odd)
    if isinstance(spec, str):
        parsed = parse_spec(spec)
    else:
        parsed = TaskSpec(
            str(spec) if isinstance(spec, Path) else name or type(spec).__name__, str(spec) if isinstance(spec, Path) else ""
        )
    double = next((key for key in options if key in parsed.options), None)
    if double is not None:
        raise InputError(f"task {spec!r}: option {double!r} is given twice; keep one")
    return replace(parsed, name=name or parsed.name, options=parsed.options | options)


def load_tasks(given: Any, *, limit: int | None = None, seed: int = 0) -> list[Task]:
    """Tasks as a study takes them: one or several, each a :class:`Task` or what :func:`load_task` reads, or by name.

    Raises
    ------
    InputError
        What is given is no task, or cannot be read.
    """

    def one(task: Any, name: str | None = None) -> Task:
        if isinstance(task, Task):
            return task if name is None else replace(task, name=name)
        return load_task(task, limit=limit, seed=seed, name=name)

    if isinstance(given, str | Path | Task) or is_table(given):
        return [one(given)]
    if isinstance(given, Mapping):
        return [one(task, name) for name, task in given.items()]
    if isinstance(given, Iterable) and not isinstance(given, bytes):
        return [one(task) for task in given]
    raise InputError(
        f"{type(given).__name__} is no task; give NAME=SOURCE, a path, {KINDS.format(label='label')}, or several by name",
        "tasks",
    )


def _preset_draft(preset: Preset, spec: TaskSpec) -> _Draft:
    asks = [name for name, template in preset.templates.items() if template.answers]
    both = preset.kind == "classes" and bool(asks)  # its classes, or whether a model names them
    check_options(spec, (*_COMMON, *preset.options, *(("kind", *_QUESTIONS) if both or preset.asked else ())))
    context = f"task {spec.text!r}"
    asking = choice(spec, "kind", preset.kind, ("classes", "answers") if both else (preset.kind,)) == "answers"
    if not asking:
        _refuse_questions(spec)
    default = asks[0] if asking and both else next(iter(preset.templates))
    template = parse_template(spec.options.get("template", default), preset.templates, context)
    rows = preset.rows(preset, spec)
    if preset.kind == "tokens":
        return _word_draft(rows, replace(spec, options={}), spec.name or preset.name, preset.source, preset.licence)
    hidden = ("label", "group", *(("answer", "difficulty") if preset.asked else ()))
    check_fields(template, [c for c in rows.columns if c not in hidden], context)
    template = with_answers(template, spec.options.get("answers"), len(preset.classes), context)
    slot = [f for f in preset.slot if f in template.fields] or list(template.fields)
    groups = [str(r["group"]) if "group" in r else normalise(_slot_text(r, slot, rows, i)) for i, r in enumerate(rows.records)]
    graded = preset.kind == "graded"
    values = [float(r["label"]) for r in rows.records] if graded else None
    labels = [int(r["label"]) if preset.kind == "classes" else 0 for r in rows.records]
    asked = asked_of(rows, spec, () if preset.asked else _asking(template, context), labels, **preset.asked) if asking else None
    for label, name in enumerate(preset.classes):
        if label not in labels:
            raise InputError(f"{context}: no row of class {name!r}; use another split or the whole dataset")
    used = [f"{key}={value}" for key, value in spec.options.items() if key not in (*_COMMON, "path")]
    source = f"preset {preset.name} ({', '.join([preset.source, *used])})"
    name = spec.name or preset.name
    return _Draft(
        name,
        source,
        rows,
        template,
        slot,
        labels,
        preset.classes,
        groups,
        licence=preset.licence,
        kind="answers" if asking else preset.kind,
        values=values,
        asked=asked,
    )


def _asking(template: Template, context: str) -> tuple[str, ...]:
    """For each class the word that a model would answer; none where there are no classes.

    Raises:
        InputError: the template does not ask.
    """
    if not template.answers:
        raise InputError(f"{context}: kind=answers needs a template that asks, and answers=")
    return template.answers


def _refuse_questions(spec: TaskSpec) -> None:
    if odd := next((key for key in _QUESTIONS if key in spec.options), None):
        raise InputError(f"task {spec.text!r}: {odd}= is of questions for a model to answer; add kind=answers")


def _hub_draft(spec: TaskSpec) -> _Draft:
    check_options(spec, (*_COMMON, *_COLUMNS, *_HUB))
    source = spec.source.removeprefix("hf:")
    if not source:
        raise InputError(f"task {spec.text!r}: no dataset after 'hf:'; write hf:org/name or hf:/path/to/folder")
    rows = hub_rows(
        source,
        config=spec.options.get("config"),
        split=spec.options.get("split"),
        revision=spec.options.get("revision"),
        context=f"task {spec.text!r}",
        instead=f"a shipped preset ({', '.join(SHIPPED)}), a local folder (hf:/path) or a local .jsonl/.csv/.parquet",
        label=spec.options.get("label", "label"),
    )
    name = spec.name or Path(source).name
    return _table_draft(rows, spec, name, f"dataset {rows.origin}")


def _table_draft(rows: Rows, spec: TaskSpec, name: str, source: str) -> _Draft:
    """A task from a table whose columns the user names."""
    kind: LabelKind = choice(spec, "kind", "classes", get_args(LabelKind))  # type: ignore[assignment]
    if kind != "answers":
        _refuse_questions(spec)
    if kind == "tokens":
        return _word_draft(rows, spec, name, source)
    if odd := next((key for key in ("tokens", "spans") if key in spec.options), None):
        raise InputError(f"task {spec.text!r}: {odd}= is of labels for words; add kind=tokens")
    options = spec.options
    own = kind == "answers" and "answers" not in options  # what is right stands in a column, and follows from no label
    text, label = options.get("text", "text"), options.get("answer", "answer") if own else options.get("label", "label")
    context = f"task {spec.text!r}"
    named = [key for key in ("label", "positive") if key in options]
    if own and named:
        raise InputError(
            f"{context}: {named[0]}= is of classes; name the word of each by answers=, or give answer=COLUMN alone"
        )
    template = parse_template(options.get("template", "{text}"), {}, context)
    which = "answer" if own else "label"
    for key, column in ((which, label), ("group", options.get("group")), ("language", options.get("language"))):
        if column is not None:
            _require_column(rows, key, column)
    if "text" in options or ("text" in template.fields and "text" not in rows.columns):
        _require_column(rows, "text", text)
    if text in rows.columns and text != "text":
        # {text} in a template always means the text column, whatever its own name.
        rows = Rows(
            [{**r, "text": r.get(text)} for r in rows.records],
            [*rows.columns, *(["text"] if "text" not in rows.columns else [])],
            rows.origin, rows.place, rows.numbers, rows.class_names,
        )  # fmt: skip
    check_fields(template, rows.columns, context)
    if label in template.fields:
        raise InputError(f"{context}: the template shows the {which} column {label!r}; leave {{{label}}} out of it")
    values = graded_values(rows, label, options) if kind == "graded" else None
    if values is None and not own:
        labels, classes = encode_labels(rows, label, options.get("positive"))
    else:
        labels, classes = [0] * len(rows.records), ()
    template = with_answers(template, options.get("answers"), len(classes), context)
    asked = asked_of(rows, spec, template.answers, labels) if kind == "answers" else None
    slot = [f for f in ("text", text) if f in template.fields][:1] or list(template.fields)
    slot_texts = [_slot_text(r, slot, rows, i) for i, r in enumerate(rows.records)]
    if "group" in options:
        groups = [_key(r.get(options["group"]), options["group"], rows.where(i)) for i, r in enumerate(rows.records)]
    else:
        groups = [normalise(t) for t in slot_texts]
    languages: list[str] | None = None
    if "language" in options:
        languages = [_key(r.get(options["language"]), options["language"], rows.where(i)) for i, r in enumerate(rows.records)]
    _tell(rows, slot_texts, options)
    return _Draft(name, source, rows, template, slot, labels, classes, groups, languages, kind=kind, values=values, asked=asked)


def _word_draft(rows: Rows, spec: TaskSpec, name: str, source: str, licence: str | None = None) -> _Draft:
    """A task whose words have labels: one row for each labelled word; rows of a text are one group unless a column says so."""
    options, context = spec.options, f"task {spec.text!r}"
    if odd := next((key for key in ("template", "answers") if key in options), None):
        raise InputError(f"{context}: a task with labels for words takes no {odd}=; its texts are read as they stand")
    for key in ("group", "language"):
        if key in options:
            _require_column(rows, key, options[key])
    words, spans = word_rows(rows, options, context)
    labels, classes = encode_labels(words, "label", options.get("positive"))
    groups = [
        normalise(str(r["text"])) if "group" not in options else _key(r.get(options["group"]), options["group"], words.where(i))
        for i, r in enumerate(words.records)
    ]
    languages = None
    if "language" in options:
        languages = [_key(r.get(options["language"]), options["language"], words.where(i)) for i, r in enumerate(words.records)]
    template = Template("{text}")
    return _Draft(
        name, source, words, template, ["text"], labels, classes, groups, languages, licence, kind="tokens", spans=spans
    )


def _tell(rows: Rows, texts: list[str], options: dict[str, str]) -> None:
    """Notes on what may not be meant so."""
    odd = [i for i, text in enumerate(texts) if text.strip() in ("nan", "NaN", "None", "NULL", "<NA>")]
    if odd:
        told = f"the text is {texts[odd[0]]!r}, as a missing one is often written; it is kept as text"
        warnings.warn(f"{rows.where(odd[0])}: {told} (rows: {len(odd)})", Note, stacklevel=4)
    if "language" in rows.columns and "language" not in options and "{language}" not in options.get("template", ""):
        told = "column 'language' is not used; add language=language for the transfer between languages"
        warnings.warn(f"{rows.origin}: {told}", Note, stacklevel=4)


def _require_column(rows: Rows, key: str, column: str) -> None:
    if column not in rows.columns:
        near = suggest(column, rows.columns)
        have = ", ".join(rows.columns)
        raise InputError(f"{rows.origin}: no column {column!r}{near}; columns: {have}; choose one with {key}=")


def _key(value: object, column: str, where: str) -> str:
    """A group or language value as text."""
    if missing(value):
        raise InputError(f"{where}: column {column!r} is missing; fill it in or drop the row")
    return str(value)


def _slot_text(record: dict[str, object], fields: list[str], rows: Rows, index: int) -> str:
    return "\n".join(field_text(record.get(f), f, rows.where(index)) for f in fields)


def _render(draft: _Draft, spec: TaskSpec, limit: int | None, seed: int) -> RenderedTask:
    """Render all rows (so that a bad row is found whatever the limit), then take the limit's groups."""
    rows, template = draft.rows, draft.template
    texts = []
    for i, record in enumerate(rows.records):
        fields = {f: field_text(record.get(f), f, rows.where(i)) for f in template.fields}
        texts.append(template.format.format(**fields))
    keep = np.arange(len(texts))
    asked = draft.asked
    if limit is not None:
        strata = draft.labels if asked is None or asked.difficulty is None else asked.difficulty
        keep = take_groups(np.unique(strata, return_inverse=True)[1], np.array(draft.groups), limit, seed)
        if draft.kind not in ("graded", "answers"):
            require_classes([draft.labels[i] for i in keep], len(draft.classes), f"task {spec.text!r}")
    languages, values, spans = draft.languages, draft.values, draft.spans
    examples = tuple(
        Example(
            texts[i],
            0 if asked else draft.labels[i],
            draft.groups[i],
            languages[i] if languages else None,
            values[i] if values else None,
            spans[i] if spans else None,
        )
        for i in keep
    )
    slot_of = {texts[i]: _slot_text(rows.records[i], draft.slot, rows, int(i)) for i in keep}
    if asked is not None:
        accepted: dict[str, tuple[str, ...]] = {}
        for i in keep.tolist():  # of a question that stands twice, what is right in either row
            accepted[texts[i]] = tuple(dict.fromkeys([*accepted.get(texts[i], ()), *asked.accepted[i]]))
        return Questions(
            draft.name, examples, (), draft.source, draft.licence, (), task_sha256(examples), kind="answers",
            template=template.format, slot_of=slot_of, accepted_of=accepted,
            difficulty_of={} if asked.difficulty is None else {texts[i]: asked.difficulty[i] for i in keep},
            check=asked.check, new_tokens=asked.new_tokens, until=asked.until, at=asked.at,
        )  # fmt: skip
    return RenderedTask(
        draft.name, examples, draft.classes, draft.source, draft.licence, template.answers, task_sha256(examples),
        kind=draft.kind, template=template.format, slot_of=slot_of,
    )  # fmt: skip
