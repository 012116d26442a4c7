"""Sign every request with the user's own API key."""

from __future__ import annotations

import asyncio
import os
import sys

from ctrlapi_async import ApiKey, ControlSession


async def main(url: str) -> None:
    key = ApiKey(os.environ["CTRLAPI_API_KEY"])
    async with ControlSession(url, user_id=1, auth=key) as session:
        print(await session.task_status(2, [1, 2, 3]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
