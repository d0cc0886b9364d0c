"""The command line: parse, call the API, print. Every command is a thin layer over one function.

A user's mistake is one line on stderr, ``error: …``, and exit code 2. Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import errno
import os
import sys
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from cyclopts import App, CoercionError, CycloptsError, Group

from moescope.cli.signals import Terminated, ignored, terminable
from moescope.cli.streams import any_terminal
from moescope.cluster import ProcessLost, ranks
from moescope.errors import InputError, StudyFault

app = App(
    name="moescope",
    help="Find, test and use the experts hidden in transformer language models.",
    version_flags=["--version", "-V"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
# By name, so that a command's module is imported only when it is run; hence the help lines and examples stand here too.
_COMMANDS = {
    "Study": {
        "circuits": (
            "verbs:circuits",
            "Find the neurons that carry each task, and test them against chance.",
            "circuits dense-tiny --task certainty=halueval --limit 100",
        ),
        "signatures": (
            "verbs:signatures",
            "Does a mixture-of-experts model route by task? Against its nulls.",
            "signatures moe-tiny --prompts routing-80",
        ),
        "distill": (
            "verbs:distill",
            "One MLP layer as thousands of tiny experts, beside Gaussian inputs.",
            "distill dense-tiny --layer 3 --experts 256 --steps 100",
        ),
        "choice": (
            "verbs:choice",
            "Which neurons few bits choose together, and whether they are the task's circuit.",
            "choice dense-tiny --neuron-share 0.25 --task sentiment=uci-sentiment",
        ),
        "dynamics": (
            "verbs:dynamics",
            "When a circuit forms: the same tasks over a series of checkpoints.",
            "dynamics step-1000 step-2000 --task certainty=halueval",
        ),
        "scaling": (
            "verbs:scaling",
            "Whether a circuit changes with size: the same tasks over several models.",
            "scaling dense-tiny smollm2 gemma3-270m --task certainty=halueval",
        ),
        "robustness": (
            "verbs:robustness",
            "How far a monitor of the routing can be trusted, and a search to fool it.",
            "robustness moe-tiny --monitor code",
        ),
        "transfer": (
            "verbs:transfer",
            "What two models' routing of the same prompts has in common.",
            "transfer moe-tiny OTHER_MOE_MODEL",
        ),
    },
    "Use": {
        "exit": (
            "verbs:exit",
            "A classifier that leaves the model early, with a bound on what that costs.",
            "exit dense-tiny --task certainty=halueval --risk 0.05",
        ),
        "route": (
            "verbs:route",
            "Name a prompt's task from the first layers, or call it unknown.",
            "route dense-tiny --task a=halueval --task b=uci-sentiment",
        ),
        "convert": (
            "verbs:convert",
            "A dense model as a mixture-of-experts checkpoint, and whether that pays.",
            "convert dense-tiny -o converted --experts 8 --active 2",
        ),
        "sparsify": (
            "verbs:sparsify",
            "A few bits choose which neurons work on a token; beside plain weights of few bits.",
            "sparsify dense-tiny -o sparse --share 0.5",
        ),
        "prune": (
            "verbs:prune",
            "A mixture of experts with fewer of them: a checkpoint, and what that costs.",
            "prune moe-tiny -o pruned --ratio 0.25",
        ),
        "steer": (
            "verbs:steer",
            "Ban, force, boost or scale experts, or ablate neurons; effect beside random ones.",
            "steer moe-tiny --ban 2:5 --target code",
        ),
        "residency": (
            "verbs:residency",
            "Would a cache of experts help, and which device should hold which?",
            "residency moescope-out/trace-moe-tiny --capacity 8",
        ),
        "targets": (
            "verbs:targets",
            "Does a text reach every expert, and which experts to fine-tune for what.",
            "targets moe-tiny --text calibration.txt",
        ),
        "serve": (
            "serve:serve",
            "A live page and an API: classify, name tasks, watch experts and circuits fire.",
            "serve moe-tiny --port 8000",
        ),
    },
    "Traces": {
        "trace": (
            "trace:trace",
            "Record which experts each token is sent to, or import that from vLLM or SGLang.",
            "",  # a group of commands: it has its own
        ),
        "atlas": (
            "verbs:atlas",
            "What every expert is for: one page of cards, with labels that other prompts confirm.",
            "atlas moe-tiny --prompts routing-80",
        ),
    },
    "Results": {
        "demo": ("demo:demo", "The main jobs on the embedded models and shipped text, offline.", "demo"),
        "plan": (
            "plan:plan",
            "What a command would take: tokens, FLOPs, memory, time; nothing is run.",
            "plan circuits dense-tiny --task certainty=halueval",
        ),
        "run": (
            "run:run",
            "Do again what a result's study.yaml says, or a study written by hand.",
            "run moescope-out/circuits-dense-tiny/study.yaml --dry-run",
        ),
        "list": (
            "results:results",
            "The results below a folder: command, model, date, claims by outcome.",
            "list moescope-out",
        ),
        "show": (
            "look:show",
            "Print a saved result again, or one of its tables.",
            "show moescope-out/circuits-dense-tiny --table controls",
        ),
        "compare": (
            "look:compare",
            "Set the claims of several results of one study side by side.",
            "compare moescope-out/circuits-smollm2 moescope-out/circuits-gemma3-270m",
        ),
    },
    "About": {
        "models": ("look:models", "List the embedded models, with their cards.", "models"),
        "tasks": ("look:tasks", "List the task presets, and how to name a task of your own.", "tasks"),
        "coverage": (
            "trace:coverage",
            "Which mixture-of-experts types of the installed transformers can be traced.",
            "coverage olmoe mixtral",
        ),
        "completion": (
            "look:completion",
            "Print the script that lets a shell complete commands and options.",
            "completion bash > ~/.local/share/bash-completion/completions/moescope",
        ),
    },
}
_GROUPS = {name: Group(name, sort_key=n) for n, name in enumerate(_COMMANDS)}
for _group, _commands in _COMMANDS.items():
    for _name, (_function, _help, _example) in _commands.items():
        _line = f"{_help}\n\nExample: moescope {_example}" if _example else _help
        app.command(f"moescope.cli.{_function}", name=_name, help=_line, group=_GROUPS[_group])
_reproduce = App(
    name="reproduce",
    help="Published figures next to measured ones, with verdicts.",
    group=_GROUPS["Results"],
    result_action="return_value",
)
for _name in ("circuits", "signatures", "secret-moe"):
    _help = f"The published figures of the study next to measured ones: {_name}.\n\nExample: moescope reproduce {_name}"
    _reproduce.command(f"moescope.cli.verbs:reproduce_{_name.replace('-', '_')}", name=_name, help=_help)
app.command(_reproduce)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit code 0, 2 for a user's mistake, 1 when a process of the job died or a study finds itself unsound, 130
    interrupted, 143 by SIGTERM."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with any_terminal(), terminable():
        _run(arguments)
    if arguments is None:  # the process is the command's
        ignored()


def _run(arguments: list[str] | None) -> None:
    try:
        with ranks():
            app(arguments, exit_on_error=False, print_error=False)
    except InputError as error:
        _fail(str(error))
    except CycloptsError as error:
        _fail(str(InputError(_said(error))))  # which is cut where it quotes too much
    except ProcessLost as error:
        _fail(str(error), 1)
    except StudyFault as error:
        _fail(f"{error}; nothing was written, since no verdict can stand on it: use more texts (--limit) or a larger model", 1)
    except MemoryError:
        _fail(_NO_MEMORY)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted; nothing was written", file=sys.stderr)
        sys.exit(143 if isinstance(error, Terminated) else 130)
    except BrokenPipeError:
        # The reader of our output has closed it (`| head`): not our error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # a library may make anything of it
        if _out_of_memory(error):
            _fail(_NO_MEMORY)
        if isinstance(error, OSError) and error.filename and error.strerror:
            _fail(str(InputError(f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}")))
        raise


_NO_MEMORY = "out of memory; use fewer examples (--limit), smaller batches (--batch-tokens) or --dtype bf16"


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether ``error``, or what it came of, is a lack of memory.

    torch has an exception of its own for a GPU's memory and a plain one for the machine's, llvmlite says of a library without
    room that it is not there, and the interpreter, where it has no room for an exception, that there is none.
    """
    words = [
        *("DefaultCPUAllocator", "can't start new thread", "failed to map segment", os.strerror(errno.ENOMEM)),
        "error return without exception set",
    ]
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(w in str(error) for w in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def _said(error: CycloptsError) -> str:
    """A value that cannot be read is named with its option, in our words; cyclopts has good words for the rest."""
    if isinstance(error, CoercionError) and error.token is not None and error.argument is not None:
        option = error.token.keyword or next(iter(error.argument.names), None)
        if option and error.msg:
            return f"{option}: {error.msg}"
        if option and error.target_type is not None:
            return f"{option}: {error.token.value!r} is not {_words(error.target_type)}"
    return " ".join(str(error).split())


def _words(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_words(k) for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return {int: "a whole number", float: "a number"}.get(kind, getattr(kind, "__name__", str(kind)))


def _fail(message: str, code: int = 2) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
