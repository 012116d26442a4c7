"""The recipes under `tests/recipes/` do what they say."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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


@pytest.mark.parametrize("name", RECIPES)
async def test_a_recipe_runs(
    name: str,
    api: ControlApiSimulator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "dask_cluster":
        pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    monkeypatch.setenv("CTRLAPI_API_KEY", "AGnO/VenzHB9xkLYZG1i70kQ9iyFBBvugGXSFyTQaB0=")
    api.mixed_tasks(1000, running=0.5)
    api.add_tasks([1001, 1002], "Running", project_id=3)
    await import_module(f"tests.recipes.{name}").main(api.url)
    assert RECIPES[name] in capsys.readouterr().out


def test_every_recipe_is_run() -> None:
    folder = Path(__file__).parents[1] / "recipes"
    assert {path.stem for path in folder.glob("*.py")} == RECIPES.keys()
