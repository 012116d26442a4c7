"""The README's code does what it says: every Python block of it is run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from ctrlapi_async import StopResult
from tests.support.readme_blocks import BLOCKS, README

if TYPE_CHECKING:
    from ctrlapi_async.simulator import ControlApiSimulator


@pytest.fixture
def server(api: ControlApiSimulator) -> ControlApiSimulator:
    api.mixed_tasks(1000, running=0.5)
    api.add_tasks([1001, 1002], "Running", project_id=3)
    return api


def load(title: str, url: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "readme"}
    code = BLOCKS[title].replace("http://172.16.1.41", url)
    exec(compile(code.replace("asyncio.run(main())", "..."), f"README: {title}", "exec"), names)
    return names


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("ctrlapi_async", "StopReport(1000 tasks: 500 stop_sent, 500 not_running)"),
        ("Outcomes as they become known", "StopReport(1000 tasks: "),
        ("Errors by kind", "project 9 does not exist"),
    ],
)
async def test_a_block_runs(
    title: str, shown: str, server: ControlApiSimulator, capsys: pytest.CaptureFixture[str]
) -> None:
    await load(title, server.url)["main"]()
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task_id", "status", "text"),
    [
        ("1001", 200, '{"task_id": 1001, "result": "not_found"}'),
        ("9223372036854775808", 400, "task_id must be from 0 to 2**63 - 1"),
        ("x", 400, "invalid literal"),
    ],
)
async def test_the_web_application_answers(
    task_id: str, status: int, text: str, server: ControlApiSimulator
) -> None:
    app = load("One session for an application", server.url)["make_app"]()
    async with TestClient(TestServer(app)) as client:
        response = await client.post(f"/tasks/{task_id}/stop")
        assert response.status == status
        assert text in await response.text()


async def test_the_web_application_names_the_cause(server: ControlApiSimulator) -> None:
    server.clear_faults()
    load_app = load("One session for an application", f"{server.url}/nowhere")
    async with TestClient(TestServer(load_app["make_app"]())) as client:
        response = await client.post("/tasks/1/stop")
        assert response.status == 502
        assert "HTTP 404" in await response.text()


async def test_the_test_of_a_service_passes(api: ControlApiSimulator) -> None:
    await load("Testing your own service", api.url)["test_a_job_is_cancelled"](api)


def test_every_block_is_run() -> None:
    assert BLOCKS.keys() == {
        "ctrlapi_async",
        "One session for an application",
        "Outcomes as they become known",
        "Errors by kind",
        "Testing your own service",
    }


def test_the_readme_names_every_outcome_and_stays_short() -> None:
    table = README[README.index("## Outcomes") : README.index("## Restarts")]
    assert re.findall(r"^\| `([A-Z_]+)`", table, re.MULTILINE) == [
        result.name for result in StopResult
    ]
    assert README.count("\n") <= 320
