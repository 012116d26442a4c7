"""The fixture `control_api`, in the test runs of others."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from ctrlapi_async import ControlSession, StopResult, pytest_plugin
from ctrlapi_async.simulator import ControlApiSimulator

ROOT = Path(__file__).parent.parent

SERVICE_TEST = """
import pytest
from ctrlapi_async import ControlSession, StopResult

MARK = pytest.mark.asyncio if {marked} else lambda function: function

async def cancel(url, task_ids):
    async with ControlSession(url, user_id=1) as session:
        return await session.stop_running(2, task_ids)

@MARK
async def test_our_service_cancels(control_api):
    control_api.add_tasks([64, 65], "Running", project_id=2)
    report = await cancel(control_api.url, [64, 65])
    assert report.ids(StopResult.STOP_SENT) == [64, 65]
    assert control_api.tasks[64].stopped

@MARK
async def test_each_test_has_its_own(control_api):
    assert not control_api.tasks
"""


def pytest_run(
    folder: Path, test: str, *options: str, plugins: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    (folder / "test_service.py").write_text(dedent(test))
    named = [word for plugin in plugins for word in ("-p", plugin)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *named, *options],
        cwd=folder,
        env={
            **{
                name: value
                for name, value in os.environ.items()
                if "COV" not in name and name != "PYTEST_ADDOPTS"
            },
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_the_fixture_in_both_modes_of_pytest_asyncio(tmp_path: Path, mode: str) -> None:
    run = pytest_run(
        tmp_path,
        SERVICE_TEST.format(marked=mode == "strict"),
        *("-W", "error", "--asyncio-mode", mode),
        *("-o", "asyncio_default_fixture_loop_scope=function"),
        plugins=("pytest_asyncio.plugin", "ctrlapi_async.pytest_plugin"),
    )
    assert "2 passed" in run.stdout, run.stdout + run.stderr


def test_without_pytest_asyncio_only_who_uses_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "pytest_asyncio.py").write_text("raise ModuleNotFoundError('pytest_asyncio')")
    test = """
        def test_without(): pass
        def test_with(control_api): pass
    """
    run = pytest_run(tmp_path, test, plugins=("ctrlapi_async.pytest_plugin",))
    assert "1 passed, 1 error" in run.stdout, run.stdout + run.stderr
    assert "control_api needs pytest-asyncio: pip install pytest-asyncio" in run.stdout


def test_the_plugin_imports_nothing_before_it_is_used() -> None:
    code = (
        "import sys, ctrlapi_async.pytest_plugin\n"
        "print({'aiohttp', 'ctrlapi_async.simulator'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "set()\n"


async def test_the_fixture_itself() -> None:
    # Run anew, for a measurement of coverage: the plugin itself is imported before that starts.
    fixture = runpy.run_path(pytest_plugin.__file__)["_control_api"]
    generator = fixture.__wrapped__() if hasattr(fixture, "__wrapped__") else fixture()
    api = await anext(generator)
    assert isinstance(api, ControlApiSimulator)
    api.add_task(64)
    async with ControlSession(api.url, user_id=1) as session:
        report = await session.stop_running(2, 64)
    assert report.ids(StopResult.STOP_SENT) == [64]
    with pytest.raises(StopAsyncIteration):
        await anext(generator)


def test_the_message_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest_asyncio", None)
    fixture = runpy.run_path(pytest_plugin.__file__)["control_api"]
    with pytest.raises(pytest.fail.Exception, match="pip install pytest-asyncio"):
        fixture.__wrapped__()
