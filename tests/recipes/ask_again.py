"""Ask again about the tasks that had no answer."""

from __future__ import annotations

import asyncio
import sys

from ctrlapi_async import ControlSession, StopIncompleteError, StopReport, StopResult


async def main(url: str) -> None:
    async with ControlSession(url, user_id=1) as session:
        report = StopReport()
        wanted = list(range(1, 1001))
        for _ in range(3):
            try:
                report |= await session.stop_running(2, wanted, timeout=60)
                break
            except StopIncompleteError as error:
                report |= error.report
                wanted = report.ids(StopResult.NOT_SENT, StopResult.UNCONFIRMED)
        print(report.complete, report)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
