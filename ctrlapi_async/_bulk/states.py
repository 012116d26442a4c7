"""What `task_status` keeps of a task: its rows, of which its state is made when it is looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ctrlapi_async._models import TaskState, parse_status
from ctrlapi_async._protocol.replies import details_of

if TYPE_CHECKING:
    from ctrlapi_async._models import TaskStatus
    from ctrlapi_async._protocol.rows import Row


class KeptState(msgspec.Struct, frozen=True, gc=False):
    """The state of one task, not made yet.

    `gc=False`: a million of them are nothing that the garbage collector looks at.

    Args:
        row: The task's row, with its JSON.
        current: The row of the current task of its restart chain, if that is another.
    """

    row: Row
    current: Row | None = None

    @property
    def status(self) -> TaskStatus | str | None:
        """The task's status."""
        return parse_status(self.row.status)

    def make(self) -> TaskState:
        """Return the state."""
        restarted_as = None if self.current is None else KeptState(self.current).make()
        return TaskState(
            self.row.task_id, self.status, self.row.error, restarted_as, details_of(self.row)
        )
