"""The house: imports only point down its floors, and each room keeps to its own tools."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

import ctrlapi_async

HOUSE = Path(ctrlapi_async.__file__).parent
PACKAGE = "ctrlapi_async"

FLOORS = {
    "models": 0,
    "roll": 0,
    "errors": 1,
    "report": 1,
    "wire": 2,
    "ledger": 2,
    "pace": 3,
    "retry": 3,
    "plan": 3,
    "transport": 3,
    "simulator": 3,
    "pytest_plugin": 4,
    "bulk": 4,
    "gather": 5,
    "session": 6,
    "distributed": 7,
    "cli": 7,
    "__main__": 8,
}
PURE = {"models", "roll", "errors", "report", "ledger", "wire", "plan"}
WORLDLY = {"asyncio", "time", "socket", "random", "aiohttp", "datetime", "selectors", "threading"}


class Import(NamedTuple):
    room: str
    target: str
    names: tuple[str, ...]
    typing_only: bool


def room_of(path: Path) -> str:
    """Name the room that a file belongs to; the root is its own."""
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports_of(path: Path) -> list[Import]:
    """List the imports of a file; `TYPE_CHECKING` blocks are marked."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in node.body
        for inner in ast.walk(child)
    }
    found = []
    for node in ast.walk(tree):
        marked = id(node) in typing_only
        if isinstance(node, ast.Import):
            found += [Import(room_of(path), each.name, (), marked) for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = tuple(each.name for each in node.names)
            found.append(Import(room_of(path), node.module or "", names, marked))
    return found


FILES = sorted(HOUSE.rglob("*.py"))
IMPORTS = [each for path in FILES for each in imports_of(path)]
INNER = [each for each in IMPORTS if each.room]


def rooms_named(each: Import) -> set[str]:
    """Name the rooms of this package that an import reaches."""
    if each.target == PACKAGE:
        return set(each.names)
    if each.target.startswith(f"{PACKAGE}."):
        return {each.target.split(".")[1]}
    return set()


def test_every_room_has_its_floor() -> None:
    assert {room_of(path) for path in FILES} - {""} == FLOORS.keys()


@pytest.mark.parametrize("room", FLOORS)
def test_imports_point_down(room: str) -> None:
    for each in INNER:
        if each.room == room and not each.typing_only:
            above = {other for other in rooms_named(each) - {room} if FLOORS[other] > FLOORS[room]}
            assert not above, each


def test_what_is_imported_for_types_alone_is_listed() -> None:
    # Arrows that point up or along a floor, and exist for a type-checker only.
    level = {
        (each.room, other)
        for each in INNER
        if each.typing_only
        for other in rooms_named(each) - {each.room}
        if FLOORS[other] >= FLOORS[each.room]
    }
    assert level == {("errors", "report")}


def test_rooms_of_one_floor_hold_no_circle() -> None:
    arrows = {
        (each.room, other)
        for each in INNER
        if not each.typing_only
        for other in rooms_named(each) - {each.room}
    }
    rooms = set(FLOORS)
    while free := {room for room in rooms if not any((room, other) in arrows for other in rooms)}:
        rooms -= free
    assert not rooms


def test_nobody_inside_imports_the_root() -> None:
    for each in INNER:
        assert each.target != PACKAGE or set(each.names) <= FLOORS.keys(), each


def test_aiohttps_client_lives_in_one_room() -> None:
    for each in INNER:
        if each.target.split(".")[0] == "aiohttp" and not each.typing_only:
            server_side = each.target == "aiohttp.web" or each.names == ("web",)
            assert each.room == "transport" or (each.room == "simulator" and server_side), each


def test_the_simulator_shares_no_code_with_the_client() -> None:
    assert not [
        each for each in INNER if each.room == "simulator" and rooms_named(each) - {"simulator"}
    ]


@pytest.mark.parametrize("room", sorted(PURE))
def test_what_thinks_knows_no_loop_no_clock_and_no_socket(room: str) -> None:
    mine = [each for each in INNER if each.room == room]
    assert mine
    assert not [each for each in mine if each.target.split(".")[0] in WORLDLY]
    assert not [node for node in ast.walk(_tree(room)) if isinstance(node, ast.AsyncFunctionDef)]


@pytest.mark.parametrize("room", sorted(PURE))
def test_what_thinks_stands_on_what_thinks(room: str) -> None:
    for each in INNER:
        if each.room == room and not each.typing_only:
            assert rooms_named(each) <= PURE


def _tree(room: str) -> ast.Module:
    return ast.parse((HOUSE / f"{room}.py").read_text())
