"""The README's code and the recipes under `tests/recipes/` do what they say: all of it is run."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from ctrlapi_async import StopResult
from tests.support.readme_blocks import BLOCKS, README

if TYPE_CHECKING:
    from ctrlapi_async.simulator import ControlApiSimulator


RECIPES = {
    "many_projects": "StopReport(502 tasks: ",
    "ask_again": "True StopReport(1000 tasks: 500 stop_sent, 500 not_running)",
    "private_ca": "StatusReport(3 tasks: ",
    "signed_requests": "StatusReport(3 tasks: ",
    "tracing": "TaskStop of 125 tasks: 200",
    "dask_cluster": "StopReport(1002 tasks: 502 stop_sent, 500 not_running)",
}


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


async def test_the_test_of_a_service_passes(api: ControlApiSimulator) -> None:
    await load("Testing your own service", api.url)["test_a_job_is_cancelled"](api)


@pytest.mark.parametrize(
    ("task_id", "path", "status", "text"),
    [
        ("1001", "", 200, '{"task_id": 1001, "result": "not_found"}'),
        ("9223372036854775808", "", 400, "task_id must be from 0 to 2**63 - 1"),
        ("x", "", 400, "invalid literal"),
        ("1", "/nowhere", 502, "HTTP 404"),
    ],
)
async def test_the_web_application_answers_and_names_the_cause(
    task_id: str, path: str, status: int, text: str, server: ControlApiSimulator
) -> None:
    app = load("One session for an application", server.url + path)["make_app"]()
    async with TestClient(TestServer(app)) as client:
        response = await client.post(f"/tasks/{task_id}/stop")
        assert response.status == status
        assert text in await response.text()


@pytest.mark.parametrize("name", RECIPES)
async def test_a_recipe_runs(
    name: str,
    server: ControlApiSimulator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "dask_cluster":
        pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    monkeypatch.setenv("CTRLAPI_API_KEY", "AGnO/VenzHB9xkLYZG1i70kQ9iyFBBvugGXSFyTQaB0=")
    await import_module(f"tests.recipes.{name}").main(server.url)
    assert RECIPES[name] in capsys.readouterr().out


def test_every_block_and_recipe_is_run() -> None:
    folder = Path(__file__).parents[1] / "recipes"
    assert {path.stem for path in folder.glob("*.py")} == RECIPES.keys()
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
