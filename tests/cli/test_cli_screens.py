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
SCREENS = {
    (int(columns), line): screen.rstrip("\n")
    for sizes, line, screen in re.findall(r"(?ms)^### ([\d ]+): (.*?)\n(.*?)(?=^###|\Z)", GOLDEN)
    for columns in sizes.split()
}


def plain(shown: str) -> str:
    """Return a screen with the same times and addresses each time."""
    shown = re.sub(r"\d+\.\d\d(\s)s", r"0.00\1s", shown)
    return re.sub(r"http://127.0.0.1:\d+", "http://127.0.0.1:12345", shown)


def few_tasks() -> World:
    """Return a server with five tasks, one of them restarted, that refuses others row by row."""
    api = World(missing="error")
    api.add_tasks([1, 2], "Running")
    api.add_task(3, "Completed")
    api.add_task(4, "Scheduled")
    api.add_task(64, "Stalled", restarts=1)
    return api


def many_tasks() -> World:
    api = World()
    api.mixed_tasks(300, restarted=0.05)
    return api


@pytest.mark.parametrize(("columns", "line"), [key for key in SCREENS if key[1] != "progress"])
def test_a_screen_fits_its_width(
    on_terminal: OnTerminal, config_folder: Path, line: str, columns: int
) -> None:
    (config_folder / "config.toml").write_text(
        '[lab]\nurl = "http://joe:pw@lab"\nuser_id = 7\nproject = [3, 4]\n'
    )
    config = line.startswith("config")
    answer = ("[y/N]", "y\n") if "--all-active" in line else None
    with few_tasks() if "64" in line or "99" in line else many_tasks() as api:
        server = None if config else api
        result = on_terminal(server, *line.split(), columns=columns, answer=answer)
    where, _, profile = result.out.partition("Profile: ")
    assert where.startswith("Configuration file:") is config
    assert plain(profile if config else result.out) == SCREENS[columns, line]


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_progress(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("ctrlapi_async.cli.tables.WIDTH", columns)
    words = "1,000 stop sent, 990 not running, 10 not found"
    half = Progress(doing="Stopping", total=4000, done=2000, words=words, elapsed=20)
    new = Progress(doing="Checking", total=None, done=1234, words="", elapsed=0)
    old = Progress(doing="Checking", total=None, done=1234, words="", elapsed=2)
    shown = "".join(printed(each, terminal=False) for each in (half, new, old))
    assert shown.rstrip("\n") == SCREENS[columns, "progress"]


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
    with few_tasks() as api:
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
    with few_tasks() as api, Pseudoterminal(40) as terminal:
        terminal.start(api, "status", "1-4", "64", "99").wait()
        terminal.finish()
        assert plain(terminal.screen) == SCREENS[40, "status 1-4 64 99"]
