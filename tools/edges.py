"""The shape of the source in numbers: import edges between rooms, those that point upward, circles, lines and statements.

    python tools/edges.py            # what the docs and the change log quote
    python tools/edges.py --list     # every edge between rooms
    python tools/edges.py --walk     # the way of a model through `moescope circuits`: modules passed, climbs to an upper floor

An edge is a pair of rooms (folders and files on the first level) of which a file in one imports a file in the other, imports
for type checkers and inside functions included. Floors are those of the contract in `.importlinter`.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "moescope"


def modules(source: Path = SOURCE) -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the project that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                target = inner if inner in known else node.module
                if target in known and target != name:
                    yield target


def room_of(name: str) -> str:
    """The folder or file on the first level of the source in which a module stands."""
    return name.split(".")[1] if "." in name else name


def floors() -> dict[str, int]:
    """Room on the first level -> its floor, 0 the uppermost."""
    config = configparser.ConfigParser()
    if not config.read(ROOT / ".importlinter"):
        return {}
    lines = config["importlinter:contract:floors"]["layers"].split("\n")
    rows = [[room.strip(" ()") for room in line.replace("|", ":").split(":")] for line in lines if line.strip()]
    return {room: number for number, row in enumerate(rows) for room in row}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected sets of more than one file (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            ring = [stack.pop()]
            while ring[-1] != node:
                ring.append(stack.pop())
            if len(ring) > 1:
                found.append(sorted(ring))

    sys.setrecursionlimit(10_000)
    for node in graph:
        if node not in index:
            visit(node)
    return found


def statements(path: Path) -> int:
    """Statements of a file, docstrings not counted."""
    count = 0
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        bare = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        count += isinstance(node, ast.stmt) and not bare
    return count


def walk() -> tuple[list[str], int]:
    """Modules whose functions are handed the model in a small `circuits`, in order of first entry, and climbs between them."""
    import moescope
    from moescope.models import LoadedModel

    model = moescope.load_model("dense-tiny")
    seen: list[str] = []

    def note(frame, event, _argument):  # type: ignore[no-untyped-def]
        name = frame.f_globals.get("__name__", "")
        if event == "call" and name.startswith("moescope.") and name not in seen:
            code = frame.f_code
            given = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(isinstance(frame.f_locals.get(n), LoadedModel) for n in given):
                seen.append(name)

    settings = moescope.CircuitSettings(n_permutations=19, n_label_permutations=99, n_random=20, ks=(1, 10))
    sys.setprofile(note)
    try:
        moescope.circuits(model, ["certainty=halueval"], settings, run=moescope.Run(limit=200))
    finally:
        sys.setprofile(None)
    level = floors()
    at = [level.get(name.split(".")[1], 0) for name in seen]
    return seen, sum(b < a for a, b in pairwise(at))


def main() -> None:
    parser = argparse.ArgumentParser(description="The shape of the source in numbers.")
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE, help="another checkout's src/moescope")
    parser.add_argument("--list", action="store_true", help="every edge between rooms")
    parser.add_argument("--walk", action="store_true", help="the way of a model through circuits")
    options = parser.parse_args()
    if options.walk:
        seen, climbs = walk()
        print("\n".join(seen))
        print(f"modules that a model passes in circuits: {len(seen)}; climbs back to an upper floor: {climbs}")
        return
    known = modules(options.source)
    graph = {name: set(imports(name, path, known)) for name, path in known.items()}
    edges = {(room_of(a), room_of(b)) for a, targets in graph.items() for b in targets if room_of(a) != room_of(b)}
    level = floors() if options.source == SOURCE else {}
    upward = [(a, b) for a, b in edges if level.get(b, -1) < level.get(a, -1) and b in level]
    if options.list:
        for a, b in sorted(edges):
            print(f"{a} -> {b}")
    rings = circles(graph)
    files = list(known.values())
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    print(f"files {len(files)}, lines {lines}, statements {sum(map(statements, files))}")
    climbing = len(upward) if level else "not known"
    print(f"import edges between rooms {len(edges)}, upward {climbing}, circles of files {len(rings)}")
    for a, b in upward:
        print(f"  upward: {a} -> {b}")
    for ring in rings:
        print(f"  circle: {', '.join(ring)}")


if __name__ == "__main__":
    main()
