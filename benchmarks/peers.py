"""Bulk helpers of other packages, against canned servers of their own protocol.

They are measured where they are installed (extra `bench`). What differs: each sends one request for
an item where this package sends a check and, for half of the tasks, a stop; none of them follows up
on what an item turned out to be; both send one request after the other.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from typing import Any

    from benchmarks.clients import Job

    Run = Callable[[], Awaitable[object]]


def missing(package: str) -> bool:
    """Return whether a package is not installed."""
    return find_spec(package) is None


@asynccontextmanager
async def async_bulk(job: Job) -> AsyncIterator[Run]:
    """Delete documents with elasticsearch-py's `async_bulk` and its orjson serializer."""
    elasticsearch = import_module("elasticsearch")
    helpers = import_module("elasticsearch.helpers")
    serializer = import_module("elasticsearch.serializer").OrjsonSerializer()

    def actions() -> Iterator[dict[str, Any]]:
        for number in job.ids:
            yield {"_op_type": "delete", "_index": "tasks", "_id": str(number)}

    async with elasticsearch.AsyncElasticsearch(job.url, serializer=serializer) as client:
        yield lambda: helpers.async_bulk(client, actions(), chunk_size=job.size)


@asynccontextmanager
async def batch_writer(job: Job) -> AsyncIterator[Run]:
    """Delete items with aioboto3's `batch_writer`, 25 a request, as DynamoDB allows."""
    session = import_module("aioboto3").Session(
        aws_access_key_id="none",
        aws_secret_access_key="none",  # noqa: S106 - nobody checks it
        region_name="eu-west-1",
    )

    async with session.resource("dynamodb", endpoint_url=job.url) as dynamodb:
        table = await dynamodb.Table("tasks")

        async def run() -> None:
            async with table.batch_writer() as writer:
                for number in job.ids:
                    await writer.delete_item(Key={"task_id": number})

        yield run


PEERS: Final = {
    "async_bulk": ("elasticsearch", "elasticsearch"),
    "batch_writer": ("dynamodb", "aioboto3"),
}
"""By client: its canned server, and the package that it needs."""
