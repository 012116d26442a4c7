"""What to do about an error: a table of error traits and kinds of job.

The first row that fits decides. Why they stand in this order:

- Refusals that name their cause come first: they are answers, whatever else they are.
- An error that any further request is expected to meet ends the run while the session has had
  no good answer yet. Later the same error is a passing fault (a proxy that reloads, say).
- A stop is sent again only if it surely stopped nothing. After any other error its fate is
  unknown, and TaskStatus tells.
- A request that is too large is halved at once: repeating it would change nothing.
- What one task may cause is halved once it has failed alone, while other requests succeed.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from ctrlapi_async._bulk.jobs import JobKind
from ctrlapi_async._errors import (
    CtrlApiError,
    ProjectNotFoundError,
    ReplyTooLargeError,
    TasksDeniedError,
    Trait,
    UserUnavailableError,
    traits_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async._bulk.jobs import Job


class Action(Enum):
    """What becomes of a job that met an error."""

    SINGLE_OUT = auto()
    """Find the tasks that do not exist; the others go on."""
    SPLIT_PROJECTS = auto()
    """Send each half of the projects in a request of its own."""
    END_PROJECT = auto()
    """End all tasks of the job's project."""
    END_RUN = auto()
    """Send no further request."""
    HALVE = auto()
    """Send each half of the tasks in a request of its own."""
    VERIFY = auto()
    """Ask TaskStatus what became of the tasks."""
    REPEAT = auto()
    """Send it again, after a pause and within the bounds of the retry policy."""
    GIVE_UP = auto()
    """Settle the tasks without an answer."""


class Case(NamedTuple):
    """What the decision hangs on.

    Args:
        job: The job.
        error: What it met.
        traits: The error's traits.
        proven: Whether the session has had a good answer.
        only_project: Whether the run is about one project only.
        spoiled: Whether the job keeps failing alone, so that one of its tasks may be the cause.
    """

    job: Job
    error: CtrlApiError
    traits: Trait
    proven: bool
    only_project: bool
    spoiled: bool


_TABLE: Final[tuple[tuple[Callable[[Case], object], Action], ...]] = (
    (lambda case: isinstance(case.error, TasksDeniedError), Action.SINGLE_OUT),
    (lambda case: isinstance(case.error, ProjectNotFoundError), Action.END_PROJECT),
    (
        lambda case: isinstance(case.error, UserUnavailableError) and len(case.job.calls) > 1,
        Action.SPLIT_PROJECTS,
    ),
    (
        lambda case: isinstance(case.error, UserUnavailableError) and not case.only_project,
        Action.END_PROJECT,
    ),
    (lambda case: Trait.FATAL in case.traits and not case.proven, Action.END_RUN),
    (lambda case: Trait.TOO_LARGE in case.traits and case.job.size > 1, Action.HALVE),
    (lambda case: Trait.TOO_LARGE in case.traits, Action.GIVE_UP),
    (
        lambda case: case.job.kind is JobKind.STOP and Trait.NOT_CARRIED_OUT not in case.traits,
        Action.VERIFY,
    ),
    (
        lambda case: isinstance(case.error, ReplyTooLargeError) and case.job.size > 1,
        Action.HALVE,
    ),
    (
        lambda case: Trait.TASK_MAY_CAUSE in case.traits and case.spoiled and case.job.size > 1,
        Action.HALVE,
    ),
    (lambda case: case.traits & (Trait.PASSING | Trait.FATAL), Action.REPEAT),
)


def decide(
    job: Job, error: CtrlApiError, *, proven: bool, only_project: bool, spoiled: bool
) -> Action:
    """Return what becomes of a job that met an error; arguments as for `Case`."""
    case = Case(job, error, traits_of(error), proven, only_project, spoiled)
    return next((action for applies, action in _TABLE if applies(case)), Action.GIVE_UP)
