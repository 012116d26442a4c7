"""What people see at 40, 80 and 120 columns: `screens.txt` holds the golden screens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ctrlapi_async.cli.progress import Progress
from ctrlapi_async.cli.tables import printed
from tests.cli.support import Pseudoterminal, World

if TYPE_CHECKING:
    from tests.cli.support import OnTerminal

GOLDEN = Path(__file__).with_name("screens.txt").read_text("utf-8")
SCREENS = dict(section.rstrip("\n").split("\n", 1) for section in GOLDEN.split("\n### ")[1:])

few_tasks = pytest.mark.parametrize(
    "line", ["status 1-4 64 99", "stop 1 64 99 --dry-run -o wide", "stop 1 3 99"]
)
many_tasks = pytest.mark.parametrize("line", ["status 1-300 301-304", "stop --all-active"])
sizes = pytest.mark.parametrize("columns", [40, 80, 120])


def plain(shown: str) -> str:
    """Return a screen with the same times and addresses each time."""
    shown = re.sub(r"\d+\.\d\d(\s)s", r"0.00\1s", shown)
    return re.sub(r"http://127.0.0.1:\d+", "http://127.0.0.1:12345", shown)


def serve_few(api: World) -> None:
    """Serve five tasks, one of them restarted, and refuse others row by row."""
    api.missing = "error"
    api.add_tasks([1, 2], "Running")
    api.add_task(3, "Completed")
    api.add_task(4, "Scheduled")
    api.add_task(64, "Stalled", restarts=1)


@sizes
@few_tasks
def test_few_tasks(on_terminal: OnTerminal, line: str, columns: int) -> None:
    with World() as api:
        serve_few(api)
        result = on_terminal(api, *line.split(), columns=columns)
    assert plain(result.out) == SCREENS[f"{columns}: {line}"]


@sizes
@many_tasks
def test_many_tasks(on_terminal: OnTerminal, line: str, columns: int) -> None:
    answer = ("[y/N]", "y\n") if "--all-active" in line else None
    with World() as api:
        api.mixed_tasks(300, restarted=0.05)
        result = on_terminal(api, *line.split(), columns=columns, answer=answer)
    assert plain(result.out) == SCREENS[f"{columns}: {line}"]


@sizes
def test_config(on_terminal: OnTerminal, config_folder: Path, columns: int) -> None:
    (config_folder / "config.toml").write_text(
        '[lab]\nurl = "http://joe:pw@lab"\nuser_id = 7\nproject = [3, 4]\n'
    )
    result = on_terminal(None, "config", "--profile", "lab", "-p", "5", columns=columns)
    assert result.out.startswith("Configuration file:")
    assert result.out.partition("Profile: ")[2] == SCREENS[f"{columns}: config"]


@sizes
def test_progress(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("ctrlapi_async.cli.tables.WIDTH", columns)
    words = "1,000 stop sent, 990 not running, 10 not found"
    half = Progress(doing="Stopping", total=4000, done=2000, words=words, elapsed=20)
    new = Progress(doing="Checking", total=None, done=1234, words="", elapsed=0)
    old = Progress(doing="Checking", total=None, done=1234, words="", elapsed=2)
    shown = "".join(printed(each, terminal=False) for each in (half, new, old))
    assert shown.rstrip("\n") == SCREENS[f"{columns}: progress"]


def test_progress_on_a_terminal(on_terminal: OnTerminal) -> None:
    with World(latency=0.05) as api:
        api.mixed_tasks(2000)
        result = on_terminal(api, "stop", "1-2000", "-v", "-o", "json", keep=("stdout",))
    shown = re.sub(r"\x1b\[[0-9;?]*m", "", result.err)
    assert re.search(r"Stopping .* 100% [\d,]+/s .*\d:\d\d left", shown)
    assert "1,000 stop sent, 1,000 not running" in shown
    assert "debug: TaskStatus" in shown  # and not through the progress
    assert shown.count("\x1b[1A") > 2


def test_lines_and_progress_do_not_run_through_each_other(on_terminal: OnTerminal) -> None:
    with World() as api:
        serve_few(api)
        assert on_terminal(api, "stop", "1-4", "-o", "ids").err.split() == ["1", "2"]
        quiet = on_terminal(api, "status", "1", "-q", "-o", "json", keep=("stdout",))
    assert quiet.err == ""


def test_colours_on_terminals_only(
    on_terminal: OnTerminal, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b[32m" in on_terminal(world, "stop", "1").err  # green
    kept = on_terminal(world, "status", "1", "-o", "table", keep=("stdout",))
    assert "\x1b" not in kept.out
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3\dm", on_terminal(world, "stop", "2").err)


def test_the_width_is_that_of_the_terminal() -> None:
    with World() as api, Pseudoterminal(40) as terminal:
        serve_few(api)
        terminal.start(api, "status", "1-4", "64", "99").wait()
        terminal.finish()
        assert plain(terminal.screen) == SCREENS["40: status 1-4 64 99"]
