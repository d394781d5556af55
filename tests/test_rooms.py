"""Who imports whom: the imports of the code against the table in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "facelit"
HEAVY = {"torch": "torch", "torchvision": "torch", "torchmetrics": "torch", "pytorch_lightning": "Lightning"}


def table() -> dict[str, tuple[set[str], str]]:
    """What each room may import: rooms, and heavy packages in words; in the order of the table."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|([^|]*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return {room: (set(re.findall(r"`(\w+)`", rooms)), heavy) for room, rooms, heavy in rows}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.Module, everywhere: bool) -> Iterator[str]:
    """Dotted names of what a module imports; those inside functions and for type checkers only where asked for."""
    nodes: list[ast.AST] = list(ast.walk(tree)) if everywhere else [*tree.body]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def test_the_table_names_every_room_and_points_downwards() -> None:
    rooms = list(table())
    assert set(rooms) == {room_of(path) for path in MODULES}
    for number, (room, (allowed, _)) in enumerate(table().items()):
        assert allowed <= set(rooms[number + 1 :]), f"{room} would import upwards"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_are_those_of_the_table(path: Path) -> None:
    room, tree = room_of(path), ast.parse(path.read_text(encoding="utf-8"))
    allowed, heavy = table()[room]
    for name in imports(tree, everywhere=True):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if top == "facelit" and (PACKAGE / other).exists() | (PACKAGE / f"{other}.py").exists():
            assert other in allowed | {room}, f"{path.name} imports facelit.{other}, which {room} may not"
    for name in imports(tree, everywhere=False):
        word = HEAVY.get(name.partition(".")[0])
        if word and room != "cli":  # of which only the training commands do
            assert word in heavy, f"{path.name} imports {name}; the table says {heavy.strip()}"


def test_no_two_modules_import_each_other() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    edges: dict[str, set[str]] = {}
    for name, path in names.items():
        found = set(imports(ast.parse(path.read_text(encoding="utf-8")), everywhere=True))
        named = {one if one in names else one.rpartition(".")[0] for one in found}
        edges[name] = {one for one in named if one in names and one != name}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join([*above[above.index(name) :], name])}"
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in sorted(names):
        visit(name, ())
