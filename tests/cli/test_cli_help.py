"""Help, version, completion, and what is imported for them."""

from __future__ import annotations

import sys
import tomllib
from importlib import import_module
from types import SimpleNamespace

import pytest

import ctrlapi_async
from ctrlapi_async import StopResult, TaskStatus, cli
from ctrlapi_async.cli import app
from ctrlapi_async.cli.exits import Exit
from tests.cli.support import COMMANDS, ROOT, Call, Result, ended, start

LIBRARY_WORDS = ("base_url", "ssl", "`auth`", "RetryPolicy", "Batching", "asyncio", "aiohttp")


def python(code: str) -> Result:
    return ended(start(None, "-c", code))


def test_help_does_not_wait_for_slow_imports() -> None:
    shown = python(
        "import sys\n"
        "from ctrlapi_async.cli import main\n"
        "main(['--help']); main(['stop', '--help'])\n"
        "slow = {'aiohttp', 'cattrs', 'ctrlapi_async._session'}\n"
        "print(*slow & set(sys.modules), file=sys.stderr)"
    )
    assert shown.err.strip() == ""
    assert "--wait-pending" in shown.out


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("columns", [40, 80])
def test_help(call: Call, monkeypatch: pytest.MonkeyPatch, command: str, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = call(None, *command.split(), "--help")
    assert (result.status, result.err) == (Exit.OK, "")
    assert result.out.count("\n  ctrlapi-async ") + result.out.count("=7 ctrlapi-async ") == 3
    assert not [word for word in LIBRARY_WORDS if word in result.out]
    boxes = [len(line) for line in result.out.splitlines() if line and line[0] in "╭│╰"]
    assert 0 < max(boxes) <= columns
    assert call(None, "help", *command.split()).out == result.out


def test_what_help_tells(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = call(None, "--help").out
    assert [status for status in Exit if f"\n  {status.value:<3}  " not in text] == []
    text = call(None, "stop", "--help").out
    for name in ("URL", "USER_ID", "PROJECT_ID", "AUTH", "API_KEY", "API_KEY_FILE", "PROFILE"):
        assert f"CTRLAPI_{name}" in text
    for command, choices in (("stop", StopResult), ("status", TaskStatus)):
        words = " ".join(call(None, command, "--help").out.replace("│", " ").split())
        assert ", ".join(str(choice).lower() for choice in choices) in words


@pytest.mark.parametrize("missing", ["cyclopts", "rich", "platformdirs"])
def test_without_the_extra_one_line_tells_what_to_install(missing: str) -> None:
    result = python(
        f"import sys; sys.modules['{missing}'] = None; sys.argv[1:] = ['config']\n"
        "import runpy; runpy.run_module('ctrlapi_async', run_name='__main__')"
    )
    assert (result.status, result.out) == (Exit.USAGE, "")
    said = f"error: the command line needs {missing}, which comes with the extra `cli`: "
    assert result.err == f"{said}pip install 'ctrlapi-async[cli]'\n"


def test_what_else_is_missing_is_no_matter_of_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "ctrlapi_async.cli.app")
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    assert cli.main(["stop"]) == Exit.USAGE
    assert "pip install 'ctrlapi-async[cli]'" in capsys.readouterr().err

    def broken(arguments: list[str]) -> int:
        raise ModuleNotFoundError(str(arguments), name="aiohttp.client")

    for module in (None, SimpleNamespace(run=broken)):
        monkeypatch.setitem(sys.modules, "ctrlapi_async.cli.app", module)
        with pytest.raises(ModuleNotFoundError):
            cli.main(["stop", "--debug"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    script = app.app.generate_completion(prog_name="ctrlapi-async", shell=shell)  # type: ignore[arg-type]
    assert "wait-pending" in script
    assert "simulate" in script


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_and_the_entry_points(call: Call, flag: str) -> None:
    assert call(None, flag) == (Exit.OK, f"{ctrlapi_async.__version__}\n", "")
    assert import_module("ctrlapi_async.__main__").main is cli.main
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ctrlapi-async": "ctrlapi_async.cli:main"}
