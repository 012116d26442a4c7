"""The documented error texts and their classes (Control API, Common Response Errors)."""

from __future__ import annotations

import re
from typing import Final

from ctrlapi_async._errors import (
    MethodError,
    ProjectNotFoundError,
    TasksDeniedError,
    UndefinedMethodError,
    UserUnavailableError,
)
from ctrlapi_async._models import MAX_ID

_KINDS: Final[tuple[tuple[re.Pattern[str], type[MethodError]], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (r"\buser\b.*\bis unavailable\b", UserUnavailableError),
        (r"\bproject\b.*\bdoes not exist\b", ProjectNotFoundError),
        (r"\baccess denied to\b[\w ]*\btasks?\b", TasksDeniedError),
        (r"\bundefined method\b", UndefinedMethodError),
    )
)
_SEARCHED: Final = 200
"""Characters of a text that are searched: the patterns are slow on long ones."""

_LISTED_IDS: Final = re.compile(r"\[([\d\s,]*)\]", re.ASCII)
_ID: Final = re.compile(r"\b\d{1,19}\b", re.ASCII)


def method_error(method: str, text: str) -> MethodError:
    """Return the error that the server's text stands for.

    Args:
        method: The method that was called.
        text: The server's text.
    """
    beginning = text[:_SEARCHED]
    for pattern, kind in _KINDS:
        if pattern.search(beginning):
            if kind is TasksDeniedError:
                return TasksDeniedError(method, text, _listed_ids(text))
            return kind(method, text)
    return MethodError(method, text)


def _listed_ids(text: str) -> list[int]:
    listed = _LISTED_IDS.search(text)
    ids = map(int, _ID.findall(listed[1])) if listed else ()
    return [task_id for task_id in ids if task_id <= MAX_ID]
