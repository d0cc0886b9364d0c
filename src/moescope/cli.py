"""The command line: parse, call the API, print. Every command is a thin layer over one function.

A user's mistake is one line on stderr, ``error: …``, and exit code 2. Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from moescope.errors import InputError

if TYPE_CHECKING:
    from moescope.result import StudyResult

app = App(
    name="moescope",
    help="Find, test and use the experts hidden in transformer language models.",
    version_flags=["--version"],
    result_action="return_value",
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options that every command takes."""

    out: Annotated[Path | None, Parameter(help="Folder for the result (default: moescope-out/COMMAND).")] = None
    overwrite: Annotated[bool, Parameter(negative="", help="Replace a moescope result that stands in --out.")] = False
    seed: Annotated[int, Parameter(help="Seed of folds, permutations and random circuits.")] = 0
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON instead of a table.")] = False
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], Parameter(help="Precision of the model's weights.")] = "fp32"
    device: Annotated[str | None, Parameter(help="cpu, cuda, cuda:1 … (default: cuda where there is one).")] = None
    device_map: Annotated[str | None, Parameter(help="Passed to transformers, e.g. auto.")] = None
    batch_tokens: Annotated[int, Parameter(help="Padded tokens in one batch.")] = 8192

    def load_options(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device": self.device, "device_map": self.device_map}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Search:
    """How circuits are sought."""

    site: Annotated[str, Parameter(help="resid, mlp_act, mlp_out, attn_out, mlp_in; with layers as resid:3 or resid:0-5.")] = (
        "resid"
    )
    position: Annotated[str, Parameter(help="final, mean, or a token index such as -2.")] = "final"
    k: Annotated[int, Parameter(help="Circuit size that the controls use.")] = 10
    ks: Annotated[str, Parameter(help="Circuit sizes of the sufficiency table.")] = "1,2,3,5,10,20,50"
    sigma: Annotated[Literal["pooled", "total", "negative"], Parameter(help="Denominator of the divergence.")] = "pooled"
    selection: Annotated[Literal["nested", "global"], Parameter(help="global is the published, optimistic protocol.")] = (
        "nested"
    )
    classifier: Annotated[Literal["lda", "logistic"], Parameter(help="What reads the circuit.")] = "lda"
    folds: Annotated[int, Parameter(help="Cross-validation folds.")] = 5
    permutations: Annotated[int, Parameter(help="Label permutations of the neuron ranking.")] = 1000
    label_permutations: Annotated[int, Parameter(help="Label permutations of the whole nested procedure.")] = 100
    random: Annotated[int, Parameter(help="Random circuits per control, and sets per ablation (at least 100 there).")] = 100
    twin: Annotated[bool, Parameter(help="Also study a randomly initialised model.")] = True
    limit: Annotated[int | None, Parameter(help="Use at most this many examples of each task.")] = None
    max_tokens: Annotated[int | None, Parameter(help="Cut longer texts, from the left.")] = None

    def settings(self, common: Common, **changes: Any) -> Any:
        from moescope.circuits import CircuitSettings

        chosen: dict[str, Any] = {
            "site": self.site,
            "position": _position(self.position),
            "ks": _integers("--ks", self.ks),
            "k": self.k,
            "sigma": self.sigma,
            "selection": self.selection,
            "classifier": self.classifier,
            "n_folds": self.folds,
            "n_permutations": self.permutations,
            "n_label_permutations": self.label_permutations,
            "n_random": self.random,
            "twin": self.twin,
            "max_tokens": self.max_tokens,
            "batch_tokens": common.batch_tokens,
            "seed": common.seed,
        }
        return CircuitSettings(**(chosen | changes))


Tasks = Annotated[list[str], Parameter(name="--task", negative="", help="NAME=SOURCE; repeat for more. See `moescope tasks`.")]
_COMMON, _SEARCH = Common(), Search()


@app.command
def circuits(
    model: str,
    /,
    *,
    task: Tasks,
    ablate: Annotated[
        Literal["mean", "resample", "zero", "patch"] | None,
        Parameter(help="Switch the circuits off inside the model, against matched random neurons."),
    ] = None,
    search: Search = _SEARCH,
    common: Common = _COMMON,
) -> None:
    """Find the neurons that carry each task, and test them against chance and trivial cues.

    MODEL is a Hub id, a local folder or an embedded name (`moescope models`).
    """
    from moescope.circuits import AblationSettings
    from moescope.circuits import circuits as study
    from moescope.models import load

    folder = _prepare(common, "circuits")
    settings = search.settings(common)
    tasks = _load_tasks(task, search.limit, common.seed)
    ablation = AblationSettings(mode=ablate, n_random=max(100, search.random)) if ablate else None
    with _progress() as report:
        loaded = load(model, head=ablate is not None, **common.load_options())
        result = study(loaded, tasks, settings=settings, ablate=ablation, report=report)
    _finish(result, folder, common)


@app.command
def dynamics(
    models: Annotated[list[str], Parameter(help="Checkpoint folders, or one Hub id with --revision.")],
    /,
    *,
    task: Tasks,
    revision: Annotated[list[str] | None, Parameter(negative="", help="Hub revisions of the one model; repeat.")] = None,
    search: Search = _SEARCH,
    common: Common = _COMMON,
) -> None:
    """When does a circuit form? The same tasks over a series of checkpoints of one model."""
    from moescope.circuits import formation

    folder = _prepare(common, "dynamics")
    settings = search.settings(common)
    tasks = _load_tasks(task, search.limit, common.seed)
    with _progress() as report:
        result = formation(
            models, tasks, revisions=revision, settings=settings, report=report, load_options=common.load_options()
        )
    _finish(result, folder, common)


@app.command
def reproduce(
    study: Literal["circuits"],
    model: str | None = None,
    /,
    *,
    task: Annotated[list[str] | None, Parameter(name="--task", negative="", help="Instead of the published tasks.")] = None,
    search: Search = _SEARCH,
    common: Common = _COMMON,
) -> None:
    """Print the published figures next to measured ones, in the published settings, with a verdict on each claim.

    Without MODEL, or without the Hub, the embedded model stands in, and the output says so.
    """
    from moescope.circuits.reproduce import reproduce_circuits

    folder = _prepare(common, f"reproduce-{study}")
    with _progress() as report:
        result = reproduce_circuits(
            model,
            task,
            settings=search.settings(common, selection="global", sigma="total"),
            limit=search.limit,
            report=report,
            load_options=common.load_options(),
        )
    _finish(result, folder, common, tables=("published",))


@app.command
def demo(*, common: Common = _COMMON) -> None:
    """The main job on the embedded model and shipped text: two published tasks, all controls, and an ablation."""
    from moescope.circuits import AblationSettings, CircuitSettings
    from moescope.circuits import circuits as study
    from moescope.models import load

    folder = _prepare(common, "demo", overwrite=common.out is None)
    tasks = _load_tasks(["certainty=halueval", "sentiment=uci-sentiment"], None, common.seed)
    with _progress() as report:
        result = study(
            load("dense-tiny", head=True, **common.load_options()),
            tasks,
            settings=CircuitSettings(seed=common.seed, batch_tokens=common.batch_tokens),
            ablate=AblationSettings(ks=(1, 5, 10, 50), max_rows=200, text_tokens=1024),
            report=report,
        )
    _finish(result, folder, common)


@app.command
def show(folder: Path, /, *, table: str = "claims", json: bool = False) -> None:
    """Print a saved result again: its claims, or one of its tables."""
    from moescope.result import load

    result = load(folder)
    if json:
        _print_json(result.json())
    elif table == "claims":
        _print_claims(result)
    else:
        Console().print(result.to_frame(table).to_string(index=False))


@app.command
def compare(folders: list[Path], /, *, out: Path = Path("moescope-out/compare")) -> None:
    """Draw several saved circuit studies (models) side by side, as PNG and SVG."""
    from moescope.report.figures import save_figure
    from moescope.report.comparison import compare as draw
    from moescope.result import load

    for path in save_figure(draw([load(folder) for folder in folders]), out, "comparison"):
        print(path)


@app.command
def models(*, json: bool = False) -> None:
    """List the embedded models, with their cards."""
    from moescope.models import card, embedded

    cards = {name: card(name) for name in embedded()}
    if json:
        _print_json(cards)
    else:
        print("\n\n".join(cards.values()))


@app.command
def tasks(*, json: bool = False) -> None:
    """List the task presets, and how a task of your own is named."""
    from moescope.tasks import PRESETS

    rows = {name: preset.description for name, preset in PRESETS.items()}
    if json:
        _print_json(rows)
        return
    width = max(map(len, rows))
    for name, description in rows.items():
        print(f"{name:{width}}  {description}")
    print("\nOf your own: --task NAME=FILE.jsonl?text=COLUMN&label=COLUMN (also .csv, .parquet), or NAME=hf:org/name")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit code 0, 2 for a user's mistake, 130 when interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except InputError as error:
        _fail(str(error))
    except CycloptsError as error:
        _fail(" ".join(str(error).split()))
    except MemoryError:
        _fail("out of memory; use fewer examples (--limit), smaller batches (--batch-tokens) or --dtype bf16")
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has closed it (`| head`): not our error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option}: {text!r} is not a list of whole numbers; write 1,2,5,10") from None


def _position(text: str) -> str | int:
    if text in ("final", "mean"):
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--position: {text!r} is none of final, mean, or a token index such as -2") from None


def _load_tasks(specifications: list[str], limit: int | None, seed: int) -> list[Any]:
    from moescope.tasks import load_task

    return [load_task(text, limit=limit, seed=seed) for text in specifications]


def _prepare(common: Common, command: str, *, overwrite: bool = False) -> Path:
    """The result's folder, refused before any work is done if it could not be written at the end."""
    from moescope.report.store import check_target

    # The default folder is ours to replace; one that the user names is theirs.
    folder = common.out or Path("moescope-out") / command
    check_target(folder, overwrite=common.overwrite or common.out is None or overwrite)
    return folder


def _finish(result: StudyResult, folder: Path, common: Common, tables: tuple[str, ...] = ()) -> None:
    saved = result.save(folder, overwrite=common.overwrite or common.out is None)
    if common.json:
        _print_json({**result.json(), "folder": str(saved)})
        return
    _print_claims(result)
    for name in tables:
        print(result.to_frame(name).to_string(index=False), end="\n\n")
    for note in result.meta.get("notes") or []:
        print(note)
    print(f"report: {(saved / 'report.html').resolve()}")


def _print_claims(result: StudyResult) -> None:
    from moescope.report.claims import ClaimsTable

    Console().print(ClaimsTable(result.claims, title=result.meta.get("title")))


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr with one line per stage: done, total, time left."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as bar:
        lines: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in lines:
                for line in lines.values():
                    bar.update(line, completed=bar.tasks[line].total)
                if stage == "done":
                    return
                lines[stage] = bar.add_task(stage, total=total)
            bar.update(lines[stage], completed=done, total=total)

        yield report


if __name__ == "__main__":
    main()
