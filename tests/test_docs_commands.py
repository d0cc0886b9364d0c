"""What the documents show can be typed: commands parse, Python names what there is, links lead somewhere."""

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import moescope
from moescope.cli import app
from moescope.study.settings import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
NUMBERS = re.compile(r"^(N|STEPS)$")
COMMAND = re.compile(r"^moescope +([a-z].*)", re.S)


def fences(document: Path) -> list[tuple[str, str]]:
    return FENCE.findall(document.read_text())


def commands(document: Path) -> list[str]:
    """Lines of fenced blocks, and code in the text that has an option: what a reader would type."""
    shown = [line for language, block in fences(document) if language != "python" for line in block.splitlines()]
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", document.read_text()))]
    return [line for line in shown + [code for code in inline if " --" in code] if COMMAND.match(line)]


def tokens_of(line: str) -> list[list[str]]:
    """The command lines that a shown line stands for: ``a|b`` is each, what is in brackets is given, ``…`` is something."""
    line = re.sub(r"\s#.*", "", line.split("; ")[0])
    line = re.sub(r"(--[a-z-]+) …", r"\1 NAME=SOURCE", line) if "--task …" in line else line
    line = re.sub(r"=…", "=SOURCE", line)
    found: list[list[str]] = [[]]
    for token in shlex.split(re.sub(r"[\[\]…]", " ", line))[1:]:
        found = [[*tokens, choice] for tokens in found for choice in token.split("|")]
    return [[NUMBERS.sub("3", token) for token in tokens] for tokens in found]


SHOWN = [(document, line) for document in DOCUMENTS for line in commands(document)]
PYTHON = [(document, block) for document in DOCUMENTS for language, block in fences(document) if language == "python"]


def _id(value: Any) -> str:
    return value.name if isinstance(value, Path) else value[:40]


NAMED = [
    (document, code.split()[0])
    for document in DOCUMENTS
    for code in re.findall(r"`moescope\s+([a-z][^`]*)`", FENCE.sub("", document.read_text()))
]


@pytest.mark.parametrize(("document", "name"), NAMED, ids=_id)
def test_a_command_that_is_named_exists(document: Path, name: str) -> None:
    assert name in list(app), f"{document.name} names `moescope {name}`"


@pytest.mark.parametrize(("document", "line"), SHOWN, ids=_id)
def test_a_command_that_is_shown_parses(document: Path, line: str) -> None:
    for tokens in tokens_of(line):
        app.parse_args(tokens, exit_on_error=False, print_error=False)


def _resolved(name: str) -> Any:
    """The object of a dotted name: what a module has, before a file of that name."""
    head, _, last = name.rpartition(".")
    if not head:
        return importlib.import_module(name)
    parent = _resolved(head)
    if hasattr(parent, last) and not isinstance(getattr(parent, last), ModuleType):
        return getattr(parent, last)
    return importlib.import_module(name)


@pytest.mark.parametrize(("document", "block"), PYTHON, ids=_id)
def test_python_that_is_shown_names_what_there_is(document: Path, block: str) -> None:
    known: dict[str, Any] = {}
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moescope"):
            known |= {name.asname or name.name: _resolved(f"{node.module}.{name.name}") for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("moescope."):
            _resolved(ast.unparse(node).split("(")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            _check_call(node, known)


def _check_call(call: ast.Call, known: dict[str, Any]) -> None:
    """A call of ours binds: as many arguments as there are, by names that exist."""
    written = ast.unparse(call.func)
    if "(" in written:  # a method of what a call gave
        return
    called = _resolved(written) if written.startswith("moescope.") else known.get(written)
    elided = any(isinstance(argument, ast.Constant) and argument.value is ... for argument in call.args)
    if called is not None and not elided:
        inspect.signature(called).bind(*call.args, **{word.arg: word.value for word in call.keywords if word.arg})
    if isinstance(called, type) and issubclass(called, Settings) and not elided:
        try:
            given = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
        except ValueError:  # of names
            return
        called(**given)


INLINE = [
    (document, code)
    for document in DOCUMENTS
    for code in re.findall(r"`(moescope\.[^`]+)`", FENCE.sub("", document.read_text()))
    if re.match(r"moescope(\.\w+)+(\(|$)", code)
]


@pytest.mark.parametrize(("document", "code"), INLINE, ids=_id)
def test_a_name_in_the_text_exists(document: Path, code: str) -> None:
    code = " ".join(code.replace("…", "...").split())
    _resolved(code.split("(")[0])
    if "..." not in code and "(" in code:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call):
                _check_call(node, {name: _resolved(f"moescope.{name}") for name in moescope.__all__})


RESULTS = [(d, name) for d in DOCUMENTS for name in sorted(set(re.findall(r"\bresult\.([a-z_]+)", d.read_text())))]


@pytest.mark.parametrize(("document", "name"), RESULTS, ids=_id)
def test_a_result_has_what_is_asked_of_it(document: Path, name: str) -> None:
    assert hasattr(moescope.StudyResult, name) or name in moescope.StudyResult.__dataclass_fields__


LINKED = [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
LINKS = [(d, link) for d in LINKED for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", d.read_text()))]


@pytest.mark.parametrize(("document", "link"), [pair for pair in LINKS if "://" not in pair[1]], ids=_id)
def test_a_link_leads_somewhere(document: Path, link: str) -> None:
    path = link.partition("#")[0]
    assert not path or (document.parent / path).exists(), f"{document.name} links to {link}"


def test_there_is_something_to_check() -> None:
    assert len(SHOWN) > 40
    assert len(PYTHON) > 5
    assert len(LINKS) > 30
    assert len(INLINE) > 10


def test_a_setting_that_cannot_be_would_be_found() -> None:
    (call,) = ast.parse("moescope.CircuitSettings(k=0)").body
    with pytest.raises(moescope.InputError, match="k: must be at least 1"):
        _check_call(call.value, {})  # type: ignore[attr-defined]


def test_a_renamed_option_would_be_found() -> None:
    with pytest.raises(Exception, match="ban-expert"):
        app.parse_args(["steer", "MODEL", "--ban-expert", "5:17"], exit_on_error=False, print_error=False)
