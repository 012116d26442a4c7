"""What a caller asked of a run."""

from __future__ import annotations

from attrs import frozen


@frozen
class RunOptions:
    """What a caller asked of a run; seconds, None for none.

    Args:
        check: Whether tasks are checked before they are stopped.
        dry_run: Whether Running tasks are left alone.
        follow_restarts: Whether the outcome of a task is about its chain's current task.
        wait_pending: How long pending tasks are checked again.
        wait_stopped: How long stopped tasks are checked again.
        timeout: How long the whole run may take.
        collect: Whether the run keeps a report.
    """

    check: bool = True
    dry_run: bool = False
    follow_restarts: bool = True
    wait_pending: float | None = None
    wait_stopped: float | None = None
    timeout: float | None = None
    collect: bool = True
