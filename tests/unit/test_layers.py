"""The architecture: imports go one way, modules and classes stay small, and I/O has its place."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import ctrlapi_async

ROOT: Final = Path(ctrlapi_async.__file__).parent
PACKAGE: Final = "ctrlapi_async"
ROOT_MODULE: Final = "__init__"

LAYERS: Final[list[set[str]]] = [
    {"_models"},
    {"_errors", "_reports"},
    {"_protocol", "_auth", "_redaction", "_concurrency", "_retry", "simulator"},
    {"_adaptive", "_http_errors", "_client_errors", "_endpoint", "_reply_body", "pytest_plugin"},
    {"_limiter", "_transport"},
    {"_sender", "_bulk"},
    {"_session"},
    {ROOT_MODULE},
    {"distributed", "cli"},
    {"__main__"},
]
"""The modules and subpackages of the package: each imports only from layers above its own."""

DRIVERS: Final = {"_bulk.engine", "_bulk.source", "_bulk.run", "_bulk.batcher"}
"""The modules of the bulk stop that know the event loop."""

IMPURE: Final = {
    "asyncio", "time", "socket", "random", "aiohttp", "selectors", "threading", "subprocess",
}  # fmt: skip

CLIENT_MODULES: Final = {"_transport", "_client_errors"}
"""Where aiohttp's client may be used."""

PUBLIC_MODULES: Final = {"__init__", "__main__", "simulator", "pytest_plugin", "distributed", "cli"}


class Import(NamedTuple):
    importer: str
    """The module with the import statement, without the package's name."""
    target: str
    """What it imports, with names of modules resolved."""
    typing_only: bool

    @property
    def library(self) -> str:
        return self.target.partition(".")[0]

    @property
    def inner(self) -> str | None:
        """The module of the package that is imported, if it is one."""
        package, _, rest = self.target.partition(".")
        return (rest or ROOT_MODULE) if package == PACKAGE else None


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != ROOT_MODULE) or ROOT_MODULE


FILES: Final = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES: Final = {module: ast.parse(path.read_text()) for module, path in FILES.items()}


def imports_of(module: str) -> list[Import]:
    """Return the imports of a module; those under `TYPE_CHECKING` are marked."""
    tree = TREES[module]
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in node.body
        for inner in ast.walk(child)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            base = node.module or ""
            full = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if name.removeprefix(f"{PACKAGE}.") in FILES else base for name in full]
        else:
            continue
        found += [Import(module, target, id(node) in typing_only) for target in targets]
    return found


PURE: Final = {
    "_models", "_errors", "_reports", "_auth", "_redaction", "_concurrency", "_adaptive",
    "_http_errors", "_retry",
    *(one for one in FILES if one.startswith(("_protocol", "_bulk")) and one not in DRIVERS),
}  # fmt: skip
"""What is handed the time and does no I/O."""

IMPORTS: Final = [each for module in FILES for each in imports_of(module)]
AT_RUN_TIME: Final = [each for each in IMPORTS if not each.typing_only]


def unit(module: str) -> str:
    """Return the top-level module or subpackage that a module is or belongs to."""
    return module.partition(".")[0]


def test_every_module_has_its_layer() -> None:
    listed = [name for layer in LAYERS for name in layer]
    assert len(listed) == len(set(listed))
    assert set(listed) == {unit(module) for module in FILES}


def test_imports_go_one_way() -> None:
    level = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
    for each in IMPORTS:
        if each.inner is not None and unit(each.inner) != unit(each.importer):
            way = level[unit(each.inner)] - level[unit(each.importer)]
            assert way < 0 or (way == 0 and each.typing_only), each


def test_imports_hold_no_circle() -> None:
    arrows = {(each.importer, each.inner) for each in AT_RUN_TIME if each.inner in FILES}
    modules = set(FILES)
    while free := {one for one in modules if not any((one, two) in arrows for two in modules)}:
        modules -= free
    assert not modules


def test_every_module_of_the_core_is_private() -> None:
    assert {unit(module) for module in FILES if not module.startswith("_")} <= PUBLIC_MODULES
    inside = {module for module in FILES if module.startswith("simulator.")}
    assert all(module.rpartition(".")[2].startswith("_") for module in inside)


def test_the_clients_aiohttp_is_used_by_the_transport_alone() -> None:
    for each in AT_RUN_TIME:
        if each.library == "aiohttp":
            server_side = unit(each.importer) == "simulator" and _imports_web_only(each.importer)
            assert each.importer in CLIENT_MODULES or server_side, each


def _imports_web_only(module: str) -> bool:
    return all(
        isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] == ["web"]
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Import | ast.ImportFrom) and "aiohttp" in ast.unparse(node)
    )


def test_the_simulator_shares_no_code_with_the_client() -> None:
    shared = [
        each
        for each in IMPORTS
        if each.inner is not None and "simulator" in {unit(each.importer), unit(each.inner)}
    ]
    assert shared
    for each in shared:
        assert unit(each.inner or "") == "simulator", each
        assert not unit(each.importer).startswith("_"), each


@pytest.mark.parametrize("module", sorted(PURE))
def test_what_decides_knows_no_loop_no_clock_and_no_socket(module: str) -> None:
    for each in AT_RUN_TIME:
        if each.importer == module:
            assert each.library not in IMPURE, each
            assert each.inner is None or each.inner in PURE, each
    assert not any(isinstance(node, ast.AsyncFunctionDef) for node in ast.walk(TREES[module]))


@pytest.mark.parametrize("module", FILES)
def test_modules_and_classes_stay_small(module: str) -> None:
    lines = FILES[module].read_text().count("\n")
    assert lines <= 450 or module == "_session"  # which is signatures and docstrings
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ClassDef) and node.name != "ControlSession":
            assert (node.end_lineno or 0) - node.lineno < 250, node.name
