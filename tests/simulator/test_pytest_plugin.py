"""The fixture `control_api`, in the test runs of others."""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import ctrlapi_async
from ctrlapi_async import pytest_plugin
from ctrlapi_async.simulator import ControlApiSimulator

ROOT = Path(ctrlapi_async.__file__).parent.parent

CLIENT = """
import json, urllib.request
import pytest

def stop(url, task_id):
    document = {"user_id": 1, "methods": [{"method": "TaskStop", "params":
        {"project_id": 2, "task_ids": task_id}}]}
    request = urllib.request.Request(url + "/ctrl_api/v1/json", json.dumps(document).encode(),
        {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)["reply"]
"""
SYNC = """
@pytest.mark.parametrize("n", range(3))
def test_sync(control_api, n):
    assert not control_api.tasks
    control_api.add_task(64)
    stop(control_api.url, 64)
    assert control_api.tasks[64].stopped
"""
ASYNC = """
{mark}
async def test_async(control_api):
    assert not control_api.tasks
    control_api.add_task(64)
    stop(control_api.url, 64)  # without a turn of the test's loop
    await control_api.wait_for_requests(1, "TaskStop")
    assert control_api.tasks[64].stopped
"""
SESSION = """
from ctrlapi_async import ControlSession

{mark}
async def test_session(control_api):
    control_api.add_tasks([64, 65])
    async with ControlSession(control_api.url, user_id=1) as session:
        report = await session.stop_running(2, [64, 65])
    assert len(report) == 2
    assert control_api.tasks[64].stopped
"""
ASYNCIO = "@pytest.mark.asyncio"
SCOPED = '@pytest.mark.asyncio(loop_scope="session")'
ANYIO = '@pytest.mark.anyio\n@pytest.mark.parametrize("anyio_backend", ["{}"])'
OF_ASYNCIO = ("pytest_asyncio.plugin",)

RUNS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], int]] = {
    "no plugin": (SYNC, (), (), 3),
    "asyncio strict": (
        SYNC + ASYNC.format(mark=ASYNCIO) + SESSION.format(mark=ASYNCIO),
        OF_ASYNCIO,
        ("--asyncio-mode", "strict"),
        5,
    ),
    "asyncio auto": (
        SYNC + ASYNC.format(mark="") + SESSION.format(mark=""),
        OF_ASYNCIO,
        ("--asyncio-mode", "auto"),
        5,
    ),
    "asyncio, one loop": (
        SYNC + ASYNC.format(mark=SCOPED) + SESSION.format(mark=SCOPED),
        OF_ASYNCIO,
        ("--asyncio-mode", "strict"),
        5,
    ),
    "anyio on asyncio": (
        SYNC
        + ASYNC.format(mark=ANYIO.format("asyncio"))
        + SESSION.format(mark=ANYIO.format("asyncio")),
        ("anyio.pytest_plugin",),
        (),
        5,
    ),
    "anyio on trio": (
        SYNC + ASYNC.format(mark=ANYIO.format("trio")),
        ("anyio.pytest_plugin",),
        (),
        4,
    ),
    "aiohttp": (
        SYNC + SESSION.format(mark=""),
        (*OF_ASYNCIO, "pytest_aiohttp.plugin"),
        ("--asyncio-mode", "auto"),
        4,
    ),
    "xdist": (SYNC, ("xdist.plugin",), ("-n", "2"), 3),
}


def pytest_run(
    folder: Path, test: str, *options: str, plugins: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    (folder / "test_service.py").write_text(dedent(test))
    named = [word for plugin in plugins for word in ("-p", plugin)]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *named, *options],
        cwd=folder,
        env={
            **{
                name: value
                for name, value in os.environ.items()
                if "COV" not in name and not name.startswith("PYTEST_")
            },
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )


@pytest.mark.parametrize(("test", "plugins", "options", "passed"), RUNS.values(), ids=RUNS.keys())
def test_the_fixture_under_every_runner_of_async_tests(
    tmp_path: Path, test: str, plugins: tuple[str, ...], options: tuple[str, ...], passed: int
) -> None:
    needed = [*plugins, *(["trio"] if '"trio"' in test else [])]
    for name in needed:
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            pytest.skip(f"{name} is not installed")
    if OF_ASYNCIO[0] in plugins:
        options += ("-o", "asyncio_default_fixture_loop_scope=function")
    run = pytest_run(
        tmp_path,
        CLIENT + test,
        *("-W", "error", *options),
        plugins=(*plugins, "ctrlapi_async.pytest_plugin"),
    )
    assert f"{passed} passed" in run.stdout, run.stdout + run.stderr
    assert "warning" not in run.stdout


def test_the_plugin_imports_nothing_before_it_is_used() -> None:
    code = (
        "import sys, ctrlapi_async.pytest_plugin\n"
        "print({'aiohttp', 'asyncio', 'ctrlapi_async.simulator'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "set()\n"


def test_the_fixture_itself() -> None:
    # Run anew, for a measurement of coverage: the plugin itself is imported before that starts.
    fixture = runpy.run_path(pytest_plugin.__file__)["control_api"]
    generator = fixture.__wrapped__()
    api = next(generator)
    assert isinstance(api, ControlApiSimulator)
    assert "running" in repr(api)
    with pytest.raises(StopIteration):
        next(generator)
    assert "stopped" in repr(api)
