"""The packages of the oracle import one way."""

import ast

import pytest

from tests.support.paths import PACKAGE

ORACLE = PACKAGE / "oracle"
# Imports go from a line to lines above it.
ORDER = [
    {"matrix", "distance"},
    {"graph"},
    {"walk"},
    {"packs"},
    {"adapters"},
    {"judge"},
    {"explain"},
    {"render"},
    {"api"},
    {"__init__"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def imported(path):
    """Yield the names in `oracle` that a file imports from."""
    package = path.relative_to(ORACLE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == len(package) + 1:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]


@pytest.mark.parametrize("path", sorted(ORACLE.rglob("*.py")), ids=lambda path: str(path.relative_to(ORACLE)))
def test_imports_go_one_way(path):
    own = path.relative_to(ORACLE).with_suffix("").parts[0]
    for name in imported(path):
        assert name == own or LEVEL[name] < LEVEL[own], f"{own} imports {name}"
