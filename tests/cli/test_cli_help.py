"""Help, versions, completion, and what is imported for them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from cli_support import COMMANDS, ROOT, environment

import ctrlapi_async
from ctrlapi_async import StopResult, TaskStatus, cli
from ctrlapi_async.cli import app
from ctrlapi_async.cli.exits import Exit

if TYPE_CHECKING:
    from conftest import Call

LIBRARY_WORDS = ("base_url", "ssl", "`auth`", "RetryPolicy", "Batching", "asyncio", "aiohttp")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(None),
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_does_not_wait_for_slow_imports() -> None:
    shown = python(
        "import sys\n"
        "from ctrlapi_async.cli import main\n"
        "main(['--help']); main(['stop', '--help'])\n"
        "slow = {'aiohttp', 'cattrs', 'ctrlapi_async._session'}\n"
        "print(*slow & set(sys.modules), file=sys.stderr)"
    )
    assert shown.stderr.strip() == ""
    assert "--wait-pending" in shown.stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("columns", [40, 80])
def test_help(call: Call, monkeypatch: pytest.MonkeyPatch, command: str, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = call(None, *command.split(), "--help")
    assert (result.status, result.err) == (Exit.OK, "")
    assert result.out.count("\n  ctrlapi-async ") + result.out.count("=7 ctrlapi-async ") == 3
    assert not [word for word in LIBRARY_WORDS if word in result.out]
    boxes = [line for line in result.out.splitlines() if line[:1] in "╭│╰"]
    assert boxes
    assert max(map(len, boxes)) <= columns
    assert call(None, "help", *command.split()).out == result.out


def test_help_of_an_unknown_command(call: Call) -> None:
    result = call(None, "help", "nope")
    assert result.status == Exit.USAGE
    assert result.err == "error: there is no command 'nope': see ctrlapi-async --help\n"
    wrong = call(None, "sotp")
    assert wrong.status == Exit.USAGE
    assert wrong.err.startswith('error: Unknown command "sotp". Did you mean "stop"?')


def test_every_variable_is_told(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = call(None, "stop", "--help").out
    for name in ("URL", "USER_ID", "PROJECT_ID", "AUTH", "API_KEY", "API_KEY_FILE", "PROFILE"):
        assert f"CTRLAPI_{name}" in text


def test_choices_are_the_words_of_the_library(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command, choices in (("stop", StopResult), ("status", TaskStatus)):
        words = " ".join(call(None, command, "--help").out.replace("│", " ").split())
        assert ", ".join(str(choice).lower() for choice in choices) in words


def test_exit_statuses_are_told(call: Call) -> None:
    text = call(None, "--help").out
    assert [status for status in Exit if f"\n  {status.value:<3}  " not in text] == []


@pytest.mark.parametrize("missing", ["cyclopts", "rich", "platformdirs"])
def test_without_the_extra_one_line_tells_what_to_install(missing: str) -> None:
    result = python(
        f"import sys; sys.modules['{missing}'] = None\n"
        "sys.argv[1:] = ['config']\n"
        "import runpy; runpy.run_module('ctrlapi_async', run_name='__main__')"
    )
    assert result.returncode == Exit.USAGE
    assert result.stdout == ""
    assert result.stderr == (
        f"error: the command line needs {missing}, which comes with the extra `cli`: "
        "pip install 'ctrlapi-async[cli]'\n"
    )


def test_what_else_is_missing_is_no_matter_of_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "ctrlapi_async.cli.app")
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    assert cli.main(["stop"]) == Exit.USAGE
    assert "pip install 'ctrlapi-async[cli]'" in capsys.readouterr().err

    monkeypatch.setitem(sys.modules, "ctrlapi_async.cli.app", None)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["stop", "--debug"])

    def broken(arguments: list[str]) -> int:
        raise ModuleNotFoundError(str(arguments), name="aiohttp.client")

    monkeypatch.setitem(sys.modules, "ctrlapi_async.cli.app", SimpleNamespace(run=broken))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["stop", "--debug"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    script = app.app.generate_completion(prog_name="ctrlapi-async", shell=shell)  # type: ignore[arg-type]
    assert "wait-pending" in script
    assert "simulate" in script


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert cli.main([flag]) == Exit.OK
    assert capsys.readouterr().out == f"{ctrlapi_async.__version__}\n"


def test_python_m_and_the_entry_points() -> None:
    assert import_module("ctrlapi_async.__main__").main is cli.main
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ctrlapi-async": "ctrlapi_async.cli:main"}
    assert any("platformdirs" in need for need in project["optional-dependencies"]["cli"])
