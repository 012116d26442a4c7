"""Stop tasks of many projects, with a deadline, while the application does other work."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from ctrlapi_async import ControlSession, StopIncompleteError, StopReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


async def cancel_all(session: ControlSession, targets: Mapping[int, Iterable[int]]) -> StopReport:
    try:
        # The run's own deadline: unlike that of `asyncio.timeout`, the report survives it.
        return await session.stop_running_across(targets, timeout=60)
    except StopIncompleteError as error:
        return error.report


async def main(url: str) -> None:
    targets = {2: range(1, 501), 3: [1001, 1002]}
    async with ControlSession(url, user_id=1) as session, asyncio.TaskGroup() as group:
        stopping = group.create_task(cancel_all(session, targets))
        group.create_task(asyncio.sleep(0))  # whatever else there is to do
    print(stopping.result())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
