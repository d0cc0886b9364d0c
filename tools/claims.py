"""Writes `docs/claims.md` and the tables of README and `docs/results.md` from saved results, so that nothing is typed by hand.

python tools/claims.py                # write them
python tools/claims.py add [LABEL=]RESULT …  # keep its claims (docs/evidence/KIND-LABEL-MODEL.json), then write them
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moescope.report.format import STYLES, numbers, verdict_style
from moescope.study.encode import claim_from_json, claim_json
from moescope.study.names import model_name, slug
from moescope.study.result import load
from moescope.types import Claim

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = ROOT / "docs" / "evidence"
PAGE, README, WORDS = ROOT / "docs" / "claims.md", ROOT / "README.md", ROOT / "docs" / "results.md"
MARKS = ("<!-- written by tools/claims.py -->", "<!-- end -->")
SOURCES = {
    "H": "Hidden mixture-of-experts (Choi 2025)",
    "S": "Routing signatures (arXiv 2603.11114)",
    "M": "Secret mixtures of experts (arXiv 2512.18452)",
}
SAID = {"absent": "Not tested here", "toys": "Of no real model", "shown": "Shown, not tested", "open": "Still open"}
"""What an entry of ``claims.toml`` may say besides what results answer, and under which heading it stands."""
HEAD = ("| claim | published | measured | 95 % | control | p (Holm) | verdict |", "|---|---|---|---|---|---|---|")
_KEPT = ("title", "model", "command", "date", "seconds", "forward_tokens", "tasks", "seed", "settings")
_KEPT += ("cpu_seconds", "peak_gib", "quantisation", "encoding", "device", "notes", "sources")
MODELS = ROOT / "docs" / "models"
REAL = {"smollm2": "SmolLM2-135M-Instruct", "gemma3-270m": "Gemma-3-270M"}
FILES = {
    "boolq.dev.jsonl": "BoolQ's dev split (question, passage, label)",
    "agnews.test.jsonl": "AG News' test split (text, label)",
    "halueval_general.jsonl": "HaluEval's annotated chat answers (text, label)",
    "sst2.dev.jsonl": "SST-2's dev split, sentences (text, label)",
    "circuits-smollm2": "the result of `moescope circuits smollm2 --no-chat --task sentiment=uci-sentiment --limit 300`",
    "wikitext-2.valid.txt": "the validation split of WikiText-2",
    "--eval-include tasks": "a folder of two tasks of lm-evaluation-harness, of UCI Sentiment and BoolQ",
    "reviews.jsonl": "600 sentences of UCI Sentiment (reviews), 300 paragraphs of WikiText-2 (articles): text, category, group",
}
"""Files that a command names and that do not ship with moescope: what they are."""
_WHOLE = re.compile(
    r'<!-- claims of ([\w-]+)(?: beginning "([^>]+)")?, written by tools/claims.py -->\n(.*?)<!-- end -->', re.DOTALL
)
"""In a page of docs: where all claims of one result that is kept stand, or those that begin so or so."""
_SHOWN: dict[str, dict[str, tuple[str, ...]]] = {
    "circuits": {
        "answers": ("difficulty", "n", "right", "low", "high", "commonest", "commonest_share", "log_probability", "tokens"),
        "beyond_answers": ("rival", "rival_auroc", "circuit_auroc", "both_auroc", "gain", "gain_low", "gain_high", "p"),
    },
    "prune": {"pruning": ()},
    "route": {
        "stream": ("way", "promised", "accuracy", "low", "high", "lost", "share", "speedup"),
        "strangers": ("task", "n", "unknown", "routed", "mostly", "early", "share"),
        "experts": ("task", "n", "left_out", "full", "own", "low", "high", "shared", "others", "random"),
        "causal": ("early", "task", "towards", "change", "n", "told", "auroc", "way", "named", "router"),
    },
    "steer": {"others": ("category", "prompts_of", "effect", "low", "high", "beyond", "beyond_low", "beyond_high", "p")},
    "sparsify": {
        "frontier": (
            *("method", "share", "bytes", "perplexity", "rise", "low", "high", "kl"),
            *("kernel", "tokens_per_second", "over_8_bits", "over_8_bits_low", "over_8_bits_high", "mlp_over_8_bits"),
        ),
        "speed": (
            *("method", "share", "kernel", "batch", "tokens_per_second", "over_8_bits", "low", "high"),
            *("mlp_over_8_bits", "mlp_low", "mlp_high", "mlp_gb_per_second"),
        ),
    },
}
"""By kind: tables that stand where all claims of a result do, before them, and which of their columns (none: all)."""
_TABLES = ("published", "baselines")  # of a model's page, where a result has them


@dataclass(frozen=True)
class Saved:
    """The claims of one result, and where they come from."""

    name: str
    meta: dict[str, Any]
    claims: tuple[Claim, ...]
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    """by name, columns and data"""

    @property
    def real(self) -> bool:
        """Whether a model is among what was studied that others trained, on more than a toy's text."""
        return any(name in REAL for name in self.meta["model"].split(", "))


def keep(given: str) -> Path:
    """The claims of the result in the folder ``given``, or ``LABEL=folder``, written beside those that are kept already."""
    label, _, folder = given.rpartition("=")
    result = load(Path(folder))
    parts = [result.kind, *filter(None, [label]), slug(model_name(result)).replace("_", "-")]
    target = EVIDENCE / f"{'-'.join(parts)}.json"
    meta = {key: result.meta[key] for key in _KEPT if key in result.meta}
    if meta.get("command"):
        meta["command"] = re.sub(r" (?:-o|--out)[ =]\S+| --overwrite| --quiet", "", meta["command"])
    data: dict[str, Any] = {"kind": result.kind, "meta": meta, "claims": [claim_json(c) for c in result.claims]}
    kept = {name: () for name in _TABLES if model_name(result) in REAL} | _SHOWN.get(result.kind, {})
    if shown := {
        name: result.tables[name][[c for c in columns if c in result.tables[name]] or [*result.tables[name]]]
        for name, columns in kept.items()
        if name in result.tables
    }:
        data["tables"] = {name: json.loads(frame.to_json(orient="split", index=False)) for name, frame in shown.items()}
    target.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def saved() -> list[Saved]:
    """Everything that is kept, by name."""
    found = []
    for path in sorted(EVIDENCE.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        found.append(Saved(path.stem, data["meta"], tuple(claim_from_json(c) for c in data["claims"]), data.get("tables", {})))
    return found


def page(results: list[Saved]) -> str:
    """The whole of `docs/claims.md`."""
    lines = [
        "# What the three studies claim, and what was found here",
        "",
        "Written by `python tools/claims.py` from `docs/evidence`; each table names the command that measured it. A verdict",
        "follows from the numbers in its row by the rules of `moescope.study.verdicts`.",
    ]
    said = tomllib.loads((EVIDENCE / "claims.toml").read_text(encoding="utf-8"))
    for letter, source in SOURCES.items():
        lines += ["", f"## {source}"]
        for name, entry in said.items():
            if name.startswith(letter):
                where = f" ({entry['where']})" if "where" in entry else ""
                lines += ["", f"### {name}", "", f"{entry['claim']}{where}", *_answers(name, entry, results)]
    return "\n".join(lines) + "\n"


def _answers(name: str, entry: dict[str, Any], results: list[Saved]) -> Iterator[str]:
    found = answering(name, entry, results)
    for result, claims in found:
        yield from ("", f"`{result.meta['command']}`, {result.meta['model']}:", "", *HEAD)
        for claim in claims:
            yield _row(claim)
        yield ""
        yield from (f"- {claim.statement}: {claim.words}" for claim in claims)
    for key, heading in SAID.items():
        if key in entry:
            yield from ("", f"*{heading}:* {entry[key]}.")


def answering(name: str, entry: dict[str, Any], results: list[Saved]) -> list[tuple[Saved, list[Claim]]]:
    """The claims that answer ``name``: of every result those of this id, and those that the entry names.

    Raises:
        SystemExit: the entry names what no result has.
    """
    named = [line.split(": ", 1) for line in entry.get("answers", [])]
    found = []
    for result in results:
        begun = tuple(statement for of, statement in named if of == result.name)
        claims = [c for c in result.claims if c.id == name or c.statement.startswith(begun)]
        odd = [b for b in begun if not any(c.statement.startswith(b) for c in claims)]
        if odd:
            raise SystemExit(f"claims.toml: {name}: no claim of {result.name} begins {odd[0]!r}")
        if claims:
            found.append((result, claims))
    unknown = {of for of, _ in named} - {result.name for result in results}
    if unknown:
        raise SystemExit(f"claims.toml: {name}: no result {min(unknown)!r} is kept")
    return found


def model_page(name: str, results: list[Saved]) -> str:
    """`docs/models/NAME.md`: every result that is kept of a real model, whole."""
    lines = [
        f"# {REAL[name]}",
        "",
        "Written by `python tools/claims.py` from `docs/evidence`. The weights are a quantised copy, so no figure counts as",
        "reproduced.",
    ]
    for result in results:
        meta = result.meta
        lines += ["", f"## {meta['title']}", "", f"`{meta['command']}`", ""]
        facts = {"weights": meta.get("quantisation"), "ran on": meta.get("device"), "seconds": meta.get("seconds")}
        facts |= {"CPU seconds": meta.get("cpu_seconds"), "peak GiB": meta.get("peak_gib")}
        lines.append("; ".join(f"{key}: {value}" for key, value in facts.items() if value is not None) + ".")
        lines += ["", *(f"- {note}" for note in meta.get("notes", []))]
        lines += [
            f"- {file} is {what}; it does not ship with moescope." for file, what in FILES.items() if file in meta["command"]
        ]
        for title, table in result.tables.items():
            lines += ["", f"**{title}**", "", *_table(table)]
        figures = sorted((MODELS / "figures").glob(f"{result.name}-*.png"))
        lines += [line for f in figures for line in ("", f"![{f.stem.removeprefix(result.name + '-')}](figures/{f.name})")]
        lines += ["", *HEAD, *(_row(claim) for claim in result.claims), ""]
        lines += [f"- {claim.statement}: {claim.words}" for claim in result.claims]
    return "\n".join(lines) + "\n"


def _table(table: dict[str, Any]) -> Iterator[str]:
    yield f"| {' | '.join(table['columns'])} |"
    yield f"|{'---|' * len(table['columns'])}"
    yield from (f"| {' | '.join(_cell(value) for value in row)} |" for row in table["data"])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return (
        f"{value:,.0f}"
        if isinstance(value, float | int) and abs(value) >= 1000
        else f"{value:.3g}"
        if isinstance(value, float)
        else str(value)
    )


def _row(claim: Claim) -> str:
    cells = (claim.statement, *numbers(claim), f"{verdict_style(claim).mark} {claim.verdict}")
    published, control = claim.published, claim.control
    texts = [cell.replace("|", "\\|") for cell in cells]
    if published is not None:
        texts[1] += f" ({published.source})"
    if control is not None:
        texts[4] += f" ({control.name})"
    return f"| {' | '.join(texts)} |"


def summary(results: list[Saved]) -> str:
    """The README's table: the claims that `docs/evidence/readme.txt` names, a line ``RESULT: statement`` each."""
    claims = {
        f"{r.name}: {c.statement}": replace(c, statement=f"*{r.meta['model']}*: {c.statement}")
        for r in results
        for c in r.claims
    }
    chosen = (EVIDENCE / "readme.txt").read_text(encoding="utf-8").splitlines()
    commands = {r.name: r.meta["command"] for r in results}
    used = dict.fromkeys(commands[line.split(": ", 1)[0]] for line in chosen)
    said = f"Measured by {', '.join(f'`{command}`' for command in used)}; [every claim](docs/claims.md) with its words."
    return "\n".join([*HEAD, *(_row(claims[line]) for line in chosen), "", said])


def words() -> str:
    """The table of `docs/results.md`: every verdict, and what it says."""
    rows = [f"| {s.mark} {s.heading} | {outcome} | {why} | {s.meaning} |" for (outcome, why), s in STYLES.items()]
    return "\n".join(["| verdict | outcome | explanation | it says |", "|---|---|---|---|", *rows])


def whole(path: Path, results: list[Saved]) -> str:
    """The page at ``path`` with every part that holds the claims of a result written anew."""
    by_name = {result.name: result for result in results}

    def written(found: re.Match[str]) -> str:
        result = by_name[found[1]]
        begun = tuple((found[2] or "").split('" or "'))
        chosen = [claim for claim in result.claims if claim.statement.startswith(begun)]
        if not chosen:
            raise SystemExit(f"{path.name}: no claim of {found[1]} begins {found[2]!r}")
        rows = "\n".join([*HEAD, *(_row(claim) for claim in chosen)])
        shown = (table for name, table in result.tables.items() if name not in _TABLES)
        tables = "".join("\n".join([*_table(table), "", ""]) for table in shown)
        head = found[0].split("\n", 1)[0]
        return f"{head}\n{tables}{rows}\n\nMeasured by `{result.meta['command']}` ({result.meta['model']}).\n<!-- end -->"

    return _WHOLE.sub(written, path.read_text(encoding="utf-8"))


def filled(path: Path, table: str) -> str:
    """The page at ``path`` with the part between the marks written anew."""
    before, rest = path.read_text(encoding="utf-8").split(MARKS[0], 1)
    return f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{rest.split(MARKS[1], 1)[1]}"


def pages() -> dict[Path, str]:
    """Every page that is written from results or declarations."""
    results = saved()
    real = {name: [r for r in results if r.name.endswith(name)] for name in REAL}
    models = {MODELS / f"{name}.md": model_page(name, found) for name, found in real.items() if found}
    docs = {
        path: whole(path, results) for path in sorted((ROOT / "docs").glob("*.md")) if _WHOLE.search(path.read_text("utf-8"))
    }
    return {**docs, PAGE: page(results), README: filled(README, summary(results)), WORDS: filled(WORDS, words()), **models}


if __name__ == "__main__":
    if sys.argv[1:2] == ["add"]:
        for folder in sys.argv[2:]:
            print(keep(folder).relative_to(ROOT))
    elif sys.argv[1:]:
        sys.exit(f"{sys.argv[1]!r} is none of: add [LABEL=]RESULT …, or nothing")
    for target, text in pages().items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
