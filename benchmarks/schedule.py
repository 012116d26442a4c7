"""The best schedule that a bulk stop can have, simulated."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from benchmarks.server import runs

if TYPE_CHECKING:
    from collections.abc import Sequence


def round_trips(ids: Sequence[int], chunk: int, slots: int, *, stops_first: bool = True) -> int:
    """Give how many round trips a bulk stop takes when all requests take equally long.

    Each slot sends its next request as soon as it is free: a full chunk of stops, whose ids are
    known by then, or a check; and the last stops when nothing is left to check.

    Args:
        ids: The tasks.
        chunk: Ids a request at most.
        slots: Requests in flight at most.
        stops_first: Whether a full stop goes before a check, as the package promises, or after.
    """
    checks = [sum(map(runs, ids[start : start + chunk])) for start in range(0, len(ids), chunk)]
    checks.reverse()
    checking = pooled = now = 0
    flying: list[tuple[int, int]] = []  # when a reply comes, and what it shows to be running
    while True:
        while len(flying) < slots:
            if pooled >= chunk and (stops_first or not checks):
                pooled -= chunk
                heapq.heappush(flying, (now + 1, 0))
            elif checks:
                checking += 1
                heapq.heappush(flying, (now + 1, 1 + checks.pop()))
            elif pooled and not checking:
                pooled = 0
                heapq.heappush(flying, (now + 1, 0))
            else:
                break
        if not flying:
            return now
        now, found = heapq.heappop(flying)
        if found:
            checking -= 1
            pooled += found - 1
