# mypy: disable-error-code="no-untyped-call"
# distributed annotates few of its functions.
"""Spread the stops on many servers over the workers of a Dask cluster (extra `dask`).

The ids are cut into shards. A shard whose worker dies is checked again, not blindly repeated: a
task of such a shard that is then found Canceled counts as STOP_SENT, and its `error` says why.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from distributed import Client, LocalCluster

from ctrlapi_async import ControlSession
from ctrlapi_async.distributed import ServersIncompleteError, stop_running_on


async def main(url: str) -> None:
    targets = {url: {2: range(1, 1001), 3: [1001, 1002]}}
    async with (
        LocalCluster(n_workers=2, dashboard_address=":0", asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        try:
            reports = await stop_running_on(
                client, targets, session_factory=partial(ControlSession, user_id=1)
            )
        except ServersIncompleteError as error:
            reports = dict(error.reports)  # every server's, complete or not
    for server, report in reports.items():
        print(server, report)


if __name__ == "__main__":  # the workers import this file
    asyncio.run(main(sys.argv[1]))
