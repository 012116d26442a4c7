"""The fixture `control_api`, in the test runs of others."""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import ctrlapi_async
from ctrlapi_async import pytest_plugin

ROOT = Path(ctrlapi_async.__file__).parent.parent

TESTS = """
import json, urllib.request
import pytest

def stop(url):
    document = {"user_id": 1, "methods": [{"method": "TaskStop", "params":
        {"project_id": 2, "task_ids": 64}}]}
    request = urllib.request.Request(url + "/ctrl_api/v1/json", json.dumps(document).encode(),
        {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()

@pytest.mark.parametrize("n", range(2))
def test_sync(control_api, n):
    assert not control_api.tasks
    task = control_api.add_task(64)
    stop(control_api.url)
    control_api.wait_for_requests_sync(1)
    assert task.stopped
"""
ASYNC = """
async def test_async(control_api):
    assert not control_api.tasks
    task = control_api.add_task(64)
    stop(control_api.url)  # without a turn of the test's loop
    await control_api.wait_for_requests(1, "TaskStop")
    assert task.stopped
"""
STRICT = "@pytest.mark.asyncio"
ONE_LOOP = '@pytest.mark.asyncio(loop_scope="session")'
ANYIO = '@pytest.mark.anyio\n@pytest.mark.parametrize("anyio_backend", ["{}"])'
ASYNCIO = ("pytest_asyncio.plugin",)

# The line before the async test (None: no such test), the plugins, their options.
RUNNERS: dict[str, tuple[str | None, tuple[str, ...], tuple[str, ...]]] = {
    "none": (None, (), ()),
    "xdist": (None, ("xdist.plugin",), ("-n", "2")),
    "asyncio strict": (STRICT, ASYNCIO, ("--asyncio-mode", "strict")),
    "asyncio auto": ("", ASYNCIO, ("--asyncio-mode", "auto")),
    "asyncio one loop": (ONE_LOOP, ASYNCIO, ("--asyncio-mode", "strict")),
    "aiohttp": ("", (*ASYNCIO, "pytest_aiohttp.plugin"), ("--asyncio-mode", "auto")),
    "anyio asyncio": (ANYIO.format("asyncio"), ("anyio.pytest_plugin",), ()),
    "anyio trio": (ANYIO.format("trio"), ("anyio.pytest_plugin",), ()),
}


@pytest.mark.parametrize(("mark", "plugins", "options"), RUNNERS.values(), ids=RUNNERS.keys())
def test_the_fixture_under_every_runner_of_async_tests(
    tmp_path: Path, mark: str | None, plugins: tuple[str, ...], options: tuple[str, ...]
) -> None:
    modules = [name.partition(".")[0] for name in plugins]
    for module in [*modules, "trio"] if mark and "trio" in mark else modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    (tmp_path / "test_service.py").write_text(TESTS + ("" if mark is None else mark + ASYNC))
    if plugins[:1] == ASYNCIO:
        options += ("-o", "asyncio_default_fixture_loop_scope=function")
    named = ["-p", "no:cacheprovider"]
    named += [word for name in (*plugins, "ctrlapi_async.pytest_plugin") for word in ("-p", name)]
    ours = {name: value for name, value in os.environ.items() if "COV" not in name}
    ours.pop("PYTEST_ADDOPTS", None)
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *named, *options],
        cwd=tmp_path,
        env=ours | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )
    assert f"{2 if mark is None else 3} passed in" in run.stdout, run.stdout + run.stderr


def test_the_plugin_imports_nothing_before_it_is_used() -> None:
    code = (
        "import sys, ctrlapi_async.pytest_plugin\n"
        "assert not {'aiohttp', 'asyncio', 'ctrlapi_async.simulator'} & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_the_fixture_itself() -> None:
    # Run anew, for a measurement of coverage: the plugin itself is imported before that starts.
    fixture = runpy.run_path(pytest_plugin.__file__)["control_api"]
    generator = fixture.__wrapped__()
    api = next(generator)
    assert repr(api) == f"<ControlApiSimulator {api.url} running>"
    with pytest.raises(StopIteration):
        next(generator)
    assert repr(api) == f"<ControlApiSimulator {api.url} stopped>"
