"""A pytest plugin: the fixture `control_api`, a running simulator for anybody's tests.

It is there as soon as the package is installed, for tests under pytest-asyncio::

    async def test_our_service_cancels(control_api):
        control_api.add_tasks([64, 65], "Running", project_id=2)
        await our_service.cancel(control_api.url, project_id=2, task_ids=[64, 65])
        assert control_api.tasks[64].stopped
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ctrlapi_async.simulator import ControlApiSimulator

try:
    from pytest_asyncio import fixture
except ModuleNotFoundError:

    @pytest.fixture
    def control_api() -> None:
        """Say what is missing: the simulator runs in the test's event loop."""
        pytest.fail("the fixture control_api needs pytest-asyncio: pip install pytest-asyncio")

else:

    @fixture(name="control_api")
    async def _control_api() -> AsyncIterator[ControlApiSimulator]:
        """Give a running `ControlApiSimulator` without tasks; it stops after the test."""
        # Not before: what a plugin imports, a measurement of coverage does not see.
        from ctrlapi_async.simulator import ControlApiSimulator  # noqa: PLC0415

        async with ControlApiSimulator() as api:
            yield api
