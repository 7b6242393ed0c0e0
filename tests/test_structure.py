"""The house: which file imports which, how many floors there are, and how long files are.

Import contracts (.importlinter) say which room may import which, and refuse circles among folders.
"""

import ast
from functools import cache
from statistics import median

from tests.support.training import ROOT

SRC = ROOT / "src"
LIBRARIES = ("adapters", "connectivity", "sparsity")
MOST_AT_THE_TOP = 24
MOST_FLOORS = 10
LONGEST, LONGEST_MEDIAN = 400, 200

FILES = {
    ".".join(("src", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SRC.rglob("*.py"))
}
# what is still too long
TOO_LONG = set()


def _imported(name, path):
    """Names of this package's modules that a file imports, in whatever place."""
    parts = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join(above + ([node.module] if node.module else []))
            for alias in node.names:
                inside = f"{origin}.{alias.name}"
                yield inside if inside in FILES else origin


def imports():
    """Modules that every module imports."""
    return {
        name: {other for other in _imported(name, path) if other in FILES} - {name}
        for name, path in FILES.items()
    }


def circles(graph):
    """Groups of nodes that reach each other."""

    def reached(node):
        seen, todo = set(), list(graph[node])
        while todo:
            other = todo.pop()
            if other not in seen:
                seen.add(other)
                todo += graph[other]
        return seen

    below = {node: reached(node) for node in graph}
    groups = {frozenset(m for m in below[n] if n in below[m]) for n in graph if n in below[n]}
    return sorted(map(sorted, groups))


def merged(graph, place):
    """The graph whose nodes are the places of nodes; those without one (None) are left out."""
    result = {}
    for name, others in graph.items():
        if place(name) is not None:
            targets = {place(other) for other in others} - {place(name), None}
            result.setdefault(place(name), set()).update(targets)
    return result


def test_no_circle_among_files():
    assert not circles(imports())


def test_few_floors_from_commands_to_libraries():
    """Each library is one floor, whatever it is inside."""

    def place(name):
        parts = name.split(".")
        return ".".join(parts[:2]) if parts[1:2] and parts[1] in LIBRARIES else name

    graph = merged(imports(), place)
    assert not circles(graph)  # otherwise there is no end to them

    @cache
    def floors(name):
        return max(([name, *floors(other)] for other in graph[name]), key=len, default=[name])

    highest = max((floors(name) for name in graph if name.count(".") == 1), key=len)
    assert len(highest) <= MOST_FLOORS, highest


def test_few_files_at_the_top():
    assert len(list(SRC.glob("*.py"))) <= MOST_AT_THE_TOP


def test_files_are_short():
    lengths = {n: len(p.read_text(encoding="utf-8").splitlines()) for n, p in FILES.items()}
    assert {name for name, length in lengths.items() if length > LONGEST} <= TOO_LONG
    assert median(lengths.values()) < LONGEST_MEDIAN


def test_imports_inside_functions_count(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from ..errors import UserError\n    from . import export, os\n")
    imported = set(_imported("src.deployment.module", path))
    assert imported == {"src.errors", "src.deployment.export", "src.deployment"}


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}
    assert circles(graph) == [["b", "c"], ["d"]]
