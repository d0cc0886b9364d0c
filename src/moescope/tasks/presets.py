"""The tasks that moescope knows by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from moescope.errors import InputError
from moescope.tasks.build import normalise
from moescope.tasks.code import code_rows, function_rows
from moescope.tasks.hub import hub_rows
from moescope.tasks.images.load import IMAGE_PRESETS
from moescope.tasks.questions import arithmetic_rows
from moescope.tasks.sources import Rows, shipped_rows
from moescope.tasks.spec import TaskSpec, choice
from moescope.tasks.templates import Template
from moescope.types import LabelKind

SHIPPED = ("halueval", "truthfulqa", "uci-sentiment", "python-functions", "python-words")

_QA = {
    "answer": Template("Question: {question}\nAnswer: {answer}"),
    # "yes" answers for the truthful class, which is class 0.
    "judged": Template("Question: {question}\nAnswer: {answer}\nIs this answer true?", (" yes", " no")),
}
_SENTIMENT = {
    "bare": Template("{text}"),
    "question": Template("Review: {text}\nSentiment:", (" negative", " positive")),
}


@dataclass(frozen=True)
class Preset:
    """A task known by name.

    ``rows`` yields records with the template's fields, an integer ``label`` into ``classes`` and optionally ``group``.
    ``templates`` are named, the first the default; ``slot`` names the fields that carry the class.
    """

    name: str
    about: str
    classes: tuple[str, ...]
    templates: dict[str, Template]
    slot: tuple[str, ...]
    licence: str
    source: str
    rows: Callable[[Preset, TaskSpec], Rows]
    options: tuple[str, ...] = ()
    repo: str = ""
    config: str | None = None
    split: str = ""
    kind: LabelKind = "classes"
    asked: dict[str, Any] = field(default_factory=dict)
    """of questions: ``check``, ``new_tokens`` and ``until`` of :func:`~moescope.tasks.questions.asked_of`"""

    @property
    def shipped(self) -> bool:
        return not self.repo


def _halueval(preset: Preset, spec: TaskSpec) -> Rows:
    # Both turns ask the same 500 questions, so the group id holds across turns.
    turn = choice(spec, "turn", "one-turn", ("one-turn", "multi-turn", "both"))
    rows = shipped_rows("halueval_qa")
    return _keep(rows, [turn in ("both", r["turn"]) for r in rows.records])


def _truthfulqa(preset: Preset, spec: TaskSpec) -> Rows:
    return shipped_rows("truthfulqa")


def _uci(preset: Preset, spec: TaskSpec) -> Rows:
    split = choice(spec, "split", "test", ("test", "train", "all"))
    rows = shipped_rows("uci_sentiment")
    if split != "test":
        return _keep(rows, [split in ("all", r["split"]) for r in rows.records])
    # Five test rows repeat a training row up to case and punctuation ("Works great."): the embedded model saw those.
    seen = {normalise(r["text"]) for r in rows.records if r["split"] == "train"}
    return _keep(rows, [r["split"] == "test" and normalise(r["text"]) not in seen for r in rows.records])


def _keep(rows: Rows, keep: list[bool]) -> Rows:
    records = [r for r, k in zip(rows.records, keep, strict=True) if k]
    return replace(rows, records=records, numbers=[n for n, k in zip(rows.numbers, keep, strict=True) if k])


def _hub(preset: Preset, spec: TaskSpec, columns: list[str]) -> Rows:
    """The preset's dataset from the Hub, or from the local copy that ``path=`` names."""
    path = spec.options.get("path")
    config = spec.options.get("config", preset.config if path is None else None)
    alternatives = f"a shipped preset ({', '.join(SHIPPED)}), {preset.name}?path=FOLDER, or a local .jsonl/.csv/.parquet"
    rows = hub_rows(
        path or preset.repo,
        config=config,
        split=spec.options.get("split", preset.split),
        revision=spec.options.get("revision") if path is None else None,
        context=f"task {spec.text!r}",
        instead=alternatives,
        columns=columns,
    )
    for name in columns:
        if name not in rows.columns:
            raise InputError(f"{rows.origin}: no column {name!r}, which {preset.name} has; columns: {', '.join(rows.columns)}")
    return rows


def _labelled(rows: Rows, label: Callable[[dict[str, Any]], Any], classes: tuple[str, ...], **rename: str) -> Rows:
    records = []
    for i, record in enumerate(rows.records):
        value = label(record)
        if not isinstance(value, bool | int) or not 0 <= int(value) < len(classes):
            raise InputError(f"{rows.where(i)}: label {value!r} is not one of {len(classes)} classes (unlabelled split?)")
        records.append({new: record[old] for new, old in rename.items()} | {"label": int(value)})
    return replace(rows, records=records, columns=[*rename, "label"], class_names=())


def _sst2(preset: Preset, spec: TaskSpec) -> Rows:
    rows = _hub(preset, spec, ["sentence", "label"])
    # Every sentence there ends in a space, which would be each text's last token.
    for record in rows.records:
        record["sentence"] = str(record["sentence"] or "").strip()
    return _labelled(rows, lambda r: r["label"], preset.classes, text="sentence")


def _boolq(preset: Preset, spec: TaskSpec) -> Rows:
    rows = _hub(preset, spec, ["question", "passage", "answer"])
    return _labelled(rows, lambda r: r["answer"], preset.classes, question="question", passage="passage")


def _agnews(preset: Preset, spec: TaskSpec) -> Rows:
    return _labelled(_hub(preset, spec, ["text", "label"]), lambda r: r["label"], preset.classes, text="text")


_ASKS = ("who", "whose", "what", "which", "where", "when", "why", "how many", "how much", "how")


def _kind(record: dict[str, Any]) -> str:
    """What a question asks for: its answer's type and its first question word."""
    words = f" {normalise(record['question'])} "
    found = [(words.find(f" {w} "), -len(w), w) for w in _ASKS if f" {w} " in words]
    return f"{record['answer'].get('type') or ''}/{min(found)[2] if found else ''}"


def _triviaqa(preset: Preset, spec: TaskSpec) -> Rows:
    """Two rows a question: its answer (truthful), and another question's answer (false).

    The wrong answer is the answer of the next question of the same kind (same answer type, same question word) in an
    order fixed by a hash of the question id, skipping those that are an alias of the right one. Within a kind the wrong
    answers are thus very nearly a permutation of the right ones, so the answer alone says next to nothing. A question
    that is the only one of its kind, or whose answer all others share, is left out.
    """
    rows = _hub(preset, spec, ["question", "question_id", "answer"])
    kinds: dict[str, list[int]] = {}
    for i, record in enumerate(rows.records):
        if isinstance(record["answer"], dict) and str(record["answer"].get("value") or "").strip():
            kinds.setdefault(_kind(record), []).append(i)
    wrong: dict[int, str] = {}
    for members in kinds.values():
        members.sort(key=lambda i: hashlib.sha256(str(rows.records[i]["question_id"]).encode()).hexdigest())
        for at, i in enumerate(members):
            answer = rows.records[i]["answer"]
            right = {normalise(a) for a in [answer["value"], *(answer.get("aliases") or [])]}
            for step in range(1, len(members)):
                other = str(rows.records[members[(at + step) % len(members)]]["answer"]["value"])
                if normalise(other) not in right:
                    wrong[i] = other
                    break
    records, numbers = [], []
    for i in sorted(wrong):
        record = rows.records[i]
        group = normalise(record["question"])
        for label, answer in enumerate((record["answer"]["value"], wrong[i])):
            records.append({"question": record["question"], "answer": answer, "label": label, "group": group})
            numbers.append(rows.numbers[i])
    if not records:
        raise InputError(f"{rows.origin}: no two questions of one kind to draw wrong answers from; use a larger split")
    return replace(rows, records=records, numbers=numbers, columns=["question", "answer", "label", "group"])


def _short_answers(preset: Preset, spec: TaskSpec) -> Rows:
    """TriviaQA's questions, each with every alias of its answer."""
    rows = _hub(preset, spec, ["question", "question_id", "answer"])
    records = []
    for i, record in enumerate(rows.records):
        answer = record["answer"]
        known = [answer.get("value"), *(answer.get("aliases") or [])] if isinstance(answer, dict) else []
        known = [str(text) for text in known if str(text or "").strip()]
        if not known:
            raise InputError(f"{rows.where(i)}: no answer (a split without answers?); use another split")
        records.append({"question": str(record["question"]), "answer": list(dict.fromkeys(known))})
    return replace(rows, records=records, columns=["question", "answer"], class_names=())


def _gsm8k(preset: Preset, spec: TaskSpec) -> Rows:
    """Final numbers: what stands behind the last ``####`` of an answer; ``difficulty`` is the number of its steps."""
    rows = _hub(preset, spec, ["question", "answer"])
    records = []
    for i, record in enumerate(rows.records):
        steps, mark, final = str(record["answer"]).rpartition("####")
        if not mark:
            raise InputError(f"{rows.where(i)}: the answer has no final number behind ####; give GSM8K's own files")
        count = sum(bool(line.strip()) for line in steps.splitlines())
        records.append({"question": str(record["question"]), "answer": final.strip().replace(",", ""), "difficulty": count})
    return replace(rows, records=records, columns=["question", "answer", "difficulty"], class_names=())


_HUB = ("path", "config", "split", "revision")

PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset(
            "halueval", "HaluEval QA: a question's right answer, and one that a language model made up",
            ("truthful", "hallucinated"), _QA, ("answer",), "MIT", "RUCAIBox/HaluEval, QA generation pairs",
            _halueval, ("turn",),
        ),
        Preset(
            "truthfulqa", "TruthfulQA: every correct and incorrect answer to 817 questions",
            ("true", "false"), _QA, ("answer",), "Apache-2.0", "sylinrl/TruthfulQA", _truthfulqa,
        ),
        Preset(
            "uci-sentiment", "UCI Sentiment Labelled Sentences; by default those that the embedded model never saw",
            ("negative", "positive"), _SENTIMENT, ("text",), "CC-BY-4.0",
            "UCI Sentiment Labelled Sentences (Kotzias et al. 2015)", _uci, ("split",),
        ),
        Preset(
            "python-functions", "heads of the functions of this Python's library: log2 of the lines that follow; graded labels",
            (), {"bare": Template("{text}")}, ("text",), "PSF-2.0", "CPython's standard library", lambda _, __: function_rows(),
            kind="graded",
        ),
        Preset(
            "python-words", "lines of this Python's library: what each word is (keyword, attribute …); labels for words",
            (), {"bare": Template("{text}")}, ("text",), "PSF-2.0", "CPython's standard library", lambda _, __: code_rows(),
            kind="tokens",
        ),
        Preset(
            "arithmetic", "made sums of graded length, which the model answers: is its answer right?", (),
            {
                "worked": Template("{worked}\n{question} ="),
                "sum": Template("{question} ="),
                "question": Template("Question: What is {question}?\nAnswer:"),
            },
            ("question",),
            "made here", "made by moescope", lambda _, spec: arithmetic_rows(spec), ("digits", "operation", "rows", "seed"),
            kind="answers", asked={"check": "number", "new_tokens": 8},
        ),
        Preset(
            # GLUE's train split holds phrases cut out of its own sentences; the validation split whole sentences only.
            "sst2", "SST-2, whole sentences (validation)", ("negative", "positive"), _SENTIMENT, ("text",),
            "not stated by the authors", "stanfordnlp/sst2", _sst2, _HUB, "stanfordnlp/sst2", None, "validation",
        ),
        Preset(
            "triviaqa", "TriviaQA: a question's answer, and that of another question of the same kind",
            ("true", "false"), _QA, ("answer",), "Apache-2.0 (code); questions and answers of their authors",
            "mandarjoshi/trivia_qa", _triviaqa, _HUB, "mandarjoshi/trivia_qa", "rc.nocontext", "validation",
        ),
        Preset(
            "triviaqa-answers", "TriviaQA's questions, which the model answers in a few words", (),
            {"question": Template("Question: {question}\nAnswer:")}, ("question",),
            "Apache-2.0 (code); questions and answers of their authors", "mandarjoshi/trivia_qa", _short_answers, _HUB,
            "mandarjoshi/trivia_qa", "rc.nocontext", "validation", kind="answers", asked={"check": "exact"},
        ),
        Preset(
            "gsm8k", "GSM8K: word problems, of which the model's final number is compared", (),
            {"question": Template("Question: {question}\nAnswer:")}, ("question",), "MIT", "openai/gsm8k", _gsm8k, _HUB,
            "openai/gsm8k", "main", "test", kind="answers",
            asked={"check": "last-number", "new_tokens": 256, "until": "end"},
        ),
        Preset(
            "boolq", "BoolQ: yes/no questions about a passage", ("no", "yes"),
            {
                "question": Template("{passage}\nQuestion: {question}?\nAnswer:", (" no", " yes")),
                "yes-no": Template("{passage}\nQuestion: {question}? Answer yes or no.\nAnswer:", (" no", " yes")),
            },
            ("passage", "question"), "CC-BY-SA-3.0", "google/boolq", _boolq, _HUB, "google/boolq", None, "validation",
        ),
        Preset(
            "ag_news", "AG News: four topics", ("World", "Sports", "Business", "Sci/Tech"),
            {
                "bare": Template("{text}"),
                "question": Template("{text}\nTopic:", (" world", " sports", " business", " technology")),
            },
            ("text",), "not stated by the authors", "fancyzhx/ag_news", _agnews, _HUB, "fancyzhx/ag_news", None, "test",
        ),
    )
}  # fmt: skip


def list_tasks() -> dict[str, str]:
    """Name of each task preset, and what it is."""
    return {
        name: preset.about + ("" if preset.shipped else f" (from the Hub: {preset.repo})") for name, preset in PRESETS.items()
    } | {name: f"images: {preset.about}" for name, preset in IMAGE_PRESETS.items()}
