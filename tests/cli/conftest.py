"""What the tests of the command line share: worlds of tasks, and calls within this process."""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import cli
from ctrlapi_async.cli.app import app
from tests.cli.support import COMMANDS, Call, OnTerminal, Pseudoterminal, Result, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def config_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make a folder for the configuration, and take away all variables."""
    for name in [name for name in os.environ if name.startswith("CTRLAPI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "ctrlapi-async"
    folder.mkdir()
    return folder


@pytest.fixture
def world() -> Iterator[World]:
    """Serve five tasks: 1, 2 and 3 run, 4 is completed, 5 scheduled."""
    with World() as api:
        api.add_tasks([1, 2, 3], "Running")
        api.add_task(4, "Completed")
        api.add_task(5, "Scheduled")
        yield api


@pytest.fixture
def worlds(world: World) -> World:
    """Add project 3 to the world: 31 and 32 run, 33 is completed; 4: 41 runs; 5: 64 restarted."""
    world.add_tasks([31, 32], "Running", project_id=3)
    world.add_task(33, "Completed", project_id=3)
    world.add_task(41, "Running", project_id=4)
    world.add_task(64, "Stalled", project_id=5, restarts=1)
    return world


def _prepare(patch: pytest.MonkeyPatch, api: World | None) -> None:
    if api is not None:
        for name, value in (("URL", api.url), ("USER_ID", "1"), ("PROJECT_ID", "2")):
            patch.setenv(f"CTRLAPI_{name}", value)
    for command in (app, *map(app.__getitem__, COMMANDS)):
        patch.setattr(command, "_fallback_console", None)  # it would keep its first width


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Carry out a command line in this process."""

    def run(api: World | None, *argv: str, stdin: bytes = b"") -> Result:
        path = tmp_path / "standard_input"
        path.write_bytes(stdin)
        with pytest.MonkeyPatch.context() as patch, path.open() as opened:
            _prepare(patch, api)
            patch.setattr(sys, "stdin", opened)
            status = cli.main(argv)
        printed = capsys.readouterr()
        return Result(status, printed.out, printed.err)

    return run


@pytest.fixture
def on_terminal() -> OnTerminal:
    """Carry out a command line in this process, on a terminal.

    `answer` is what to wait for and what to type then, or what tells it; streams in `keep` are no
    terminals. The result's `out` is what the terminal showed, or what standard output got if that
    is kept; its `err` is all that was written to the terminal.
    """

    def run(
        api: World | None,
        *argv: str,
        columns: int = 80,
        answer: tuple[str, str | Callable[[], str]] | None = None,
        keep: tuple[str, ...] = (),
    ) -> Result:
        def reply() -> None:
            if answer is not None:
                asked = terminal.wait_for(answer[0])
                typed = answer[1] if isinstance(answer[1], str) else answer[1]()
                terminal.type(typed if asked else "\x04")
                assert asked, terminal.raw

        kept: Any = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with Pseudoterminal(columns) as terminal, pytest.MonkeyPatch.context() as patch:
            _prepare(patch, api)
            patch.setenv("COLUMNS", str(columns))
            patch.setenv("TERM", "xterm-256color")
            for name, stream in zip(("stdin", "stdout", "stderr"), terminal.streams, strict=True):
                patch.setattr(sys, name, kept if name in keep else stream)
            person = threading.Thread(target=reply)
            person.start()
            status = cli.main(argv)
            patch.undo()
            person.join()
            terminal.finish()
        out = kept.buffer.getvalue().decode() if "stdout" in keep else terminal.screen
        return Result(status, out, terminal.raw)

    return run
