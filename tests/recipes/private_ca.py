"""Authenticate at the proxy with a login and a password, and trust a private CA."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys

from ctrlapi_async import ControlSession


async def main(url: str) -> None:
    session = ControlSession(
        url,
        user_id=1,
        auth=("operator", os.environ.get("CTRLAPI_PASSWORD", "")),
        ssl=ssl.create_default_context(cafile=os.environ.get("CTRLAPI_CA_FILE")),
    )
    async with session:
        print(await session.task_status(2, [1, 2, 3]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
