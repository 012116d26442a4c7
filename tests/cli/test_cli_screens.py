"""What people see at 40, 80 and 120 columns: `screens.txt` holds the golden screens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli_support import Pseudoterminal

from ctrlapi_async.cli.progress import Progress
from ctrlapi_async.cli.tables import printed
from ctrlapi_async.simulator import ControlApiSimulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import OnTerminal

SIZES = (40, 80, 120)
SCREENS = dict(
    section.split("\n", 1)
    for section in Path(__file__).with_name("screens.txt").read_text("utf-8").split("\n### ")[1:]
)


def plain(shown: str) -> str:
    """Return a screen with the same times and addresses each time."""
    shown = re.sub(r"\d+\.\d\d(\s)s", r"0.00\1s", shown)
    return re.sub(r"http://127.0.0.1:\d+", "http://127.0.0.1:12345", shown)


@pytest.fixture
def few() -> Iterator[ControlApiSimulator]:
    """Serve five tasks, one of them restarted, and say no to others row by row."""
    with ControlApiSimulator(missing="error") as api:
        api.add_tasks([1, 2], "Running")
        api.add_task(3, "Completed")
        api.add_task(4, "Scheduled")
        api.add_task(64, "Stalled", restarts=1)
        yield api


@pytest.fixture
def many() -> Iterator[ControlApiSimulator]:
    """Serve 300 tasks of all statuses, some of them restarted."""
    with ControlApiSimulator() as api:
        api.mixed_tasks(300, restarted=0.05)
        yield api


@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize(
    "line", ["status 1-4 64 99", "stop 1 64 99 --dry-run -o wide", "stop 1 3 99"]
)
def test_few_tasks(
    on_terminal: OnTerminal, few: ControlApiSimulator, line: str, columns: int
) -> None:
    result = on_terminal(few, *line.split(), columns=columns)
    assert plain(result.out) == SCREENS[f"{columns}: {line}"].rstrip("\n")


@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("line", ["status 1-300 301-304", "stop --all-active"])
def test_many_tasks(
    on_terminal: OnTerminal, many: ControlApiSimulator, line: str, columns: int
) -> None:
    answer = ("[y/N]", "y\n") if "--all-active" in line else None
    result = on_terminal(many, *line.split(), columns=columns, answer=answer)
    assert plain(result.out) == SCREENS[f"{columns}: {line}"].rstrip("\n")


@pytest.mark.parametrize("columns", SIZES)
def test_config(on_terminal: OnTerminal, config_folder: Path, columns: int) -> None:
    (config_folder / "config.toml").write_text(
        '[lab]\nurl = "http://joe:pw@lab"\nuser_id = 7\nproject = [3, 4]\n'
    )
    result = on_terminal(None, "config", "--profile", "lab", "-p", "5", columns=columns)
    shown = result.out.replace("\n", " " * (columns == 40)).partition("Profile: ")
    assert str(config_folder / "config.toml").replace(" ", "") in shown[0].replace(" ", "")
    assert plain(result.out).partition("Profile: ")[2] == SCREENS[f"{columns}: config"].rstrip("\n")


@pytest.mark.parametrize("columns", SIZES)
def test_progress(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("ctrlapi_async.cli.tables.WIDTH", columns)
    words = "1,000 stop sent, 990 not running, 10 not found"
    half = Progress(doing="Stopping", total=4000, done=2000, words=words, elapsed=20)
    stream = Progress(doing="Checking", total=None, done=1234, words="", elapsed=0)
    later = Progress(doing="Checking", total=None, done=1234, words="", elapsed=2)
    shown = "".join(printed(each, terminal=False) for each in (half, stream, later))
    assert shown.rstrip("\n") == SCREENS[f"{columns}: progress"].rstrip("\n")


def test_progress_on_a_terminal(on_terminal: OnTerminal) -> None:
    with ControlApiSimulator(latency=0.05) as api:
        api.mixed_tasks(2000)
        result = on_terminal(api, "stop", "1-2000", "-v", "-o", "json", keep=("stdout",))
    shown = result.err
    assert "Stopping" in shown
    assert "100%" in shown
    assert re.search(r"[\d,]+/s .*\d:\d\d left", re.sub(r"\x1b\[[0-9;?]*m", "", shown))
    assert "1,000 stop sent, 1,000 not running" in shown
    assert "debug: TaskStatus" in shown  # and not through the progress
    assert shown.count("\x1b[1A") > 2


def test_lines_and_progress_do_not_run_through_each_other(
    on_terminal: OnTerminal, few: ControlApiSimulator
) -> None:
    assert on_terminal(few, "stop", "1-4", "-o", "ids").err.split() == ["1", "2"]
    quiet = on_terminal(few, "status", "1", "-q", "-o", "json", keep=("stdout",))
    assert quiet.err == ""


def test_colours_on_terminals_only(
    on_terminal: OnTerminal, few: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b[32m" in on_terminal(few, "stop", "1").err  # green
    kept = on_terminal(few, "status", "1", "-o", "table", keep=("stdout",))
    assert "\x1b" not in kept.out
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3\dm", on_terminal(few, "stop", "2").err)


def test_the_width_is_that_of_the_terminal(few: ControlApiSimulator) -> None:
    with Pseudoterminal(40) as terminal:
        running = terminal.start(few, "status", "1-4", "64", "99", "-q")
        running.wait()
        terminal.finish()
        screen = terminal.screen
    assert screen == SCREENS["40: status 1-4 64 99"].partition("\n\n6 tasks")[0]
