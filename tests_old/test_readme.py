"""The README's code does what it says: every Python block of it is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from ctrlapi_async.simulator import ControlApiSimulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = {
    re.findall(r"^#+ (.+)$", README[: block.start()], re.MULTILINE)[-1]: block[1]
    for block in re.finditer(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
}


@pytest.fixture
async def api() -> AsyncIterator[ControlApiSimulator]:
    async with ControlApiSimulator() as api:
        api.mixed_tasks(1000, running=0.5)
        api.add_tasks([1001, 1002], "Running", project_id=3)
        yield api


def load(title: str, api: ControlApiSimulator) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "readme"}
    code = BLOCKS[title].replace("http://172.16.1.41", api.url)
    exec(compile(code.replace("asyncio.run(main())", "..."), f"README: {title}", "exec"), names)
    return names


EXPECTED = {
    "In twenty lines": "StopReport(1000 tasks: 500 stop_sent, 500 not_running)",
    "Many projects, other work, and a deadline": "502",
    "Following progress, and what is known when it is cut short": "StopReport(1000 tasks: ",
    "Errors by kind": "project 9 does not exist",
    "Asking again about what had no answer": "True",
    "Behind basic authentication and a private CA": "StatusReport(3 tasks: ",
    "With a client of your own": "POST /ctrl_api/v1/json 200",
}


@pytest.mark.parametrize("title", EXPECTED)
async def test_a_block_runs(
    title: str, api: ControlApiSimulator, capsys: pytest.CaptureFixture[str]
) -> None:
    await load(title, api)["main"]()
    assert EXPECTED[title] in capsys.readouterr().out


async def test_the_web_application_stops_a_task(api: ControlApiSimulator) -> None:
    app = load("One session for an application", api)["make_app"]()
    async with TestClient(TestServer(app)) as client:
        response = await client.post("/tasks/1001/stop")
        assert await response.json() == {"task_id": 1001, "result": "not_found"}


async def test_the_test_of_an_orchestration_service() -> None:
    async with ControlApiSimulator() as empty:
        names = load("Testing your own service", empty)
        await names["test_a_job_is_called_off"](empty)


async def test_many_servers(api: ControlApiSimulator, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(
        "distributed", reason="distributed is not there: the extra `dask` brings it"
    )
    await load("More than one machine", api)["main"]()
    shown = capsys.readouterr().out
    assert shown == f"{api.url} StopReport(1002 tasks: 502 stop_sent, 500 not_running)\n"


def test_no_block_is_left_out() -> None:
    others = {
        "One session for an application",
        "Testing your own service",
        "More than one machine",
    }
    assert BLOCKS.keys() == EXPECTED.keys() | others
