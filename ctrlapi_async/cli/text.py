"""Text that is safe to show: control characters are escaped, ids and numbers are short. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

IDS_LENGTH: Final = 60
"""Characters that a list of task ids may take, more or less."""

_OPTIONS: Final = {"base_url": "--url", "connect_timeout": "--connect-timeout"}
"""What the library's errors call things, and what the command line does."""

# Control characters, line and paragraph separators, lone surrogates, and the format characters
# that change the direction of text: a terminal obeys them.
_CONTROLS: Final = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL: Final = re.compile(f"[{_CONTROLS}]")
_CONTROL_IN_A_LINE: Final = re.compile(f"(?![\t\n])[{_CONTROLS}]")


def visible(text: object) -> str:
    r"""Return text in one line, with control characters shown as escapes such as `\x1b`."""
    return _CONTROL.sub(_escape, " ".join(str(text).split()))


def visible_lines(text: str) -> str:
    """Return text as `visible` does, but with its lines and tabs kept."""
    return _CONTROL_IN_A_LINE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def own_words(text: str) -> str:
    """Return an error of the library, visible, without what only Python code can do about it."""
    parts = [part for part in visible(text).split("; ") if "`auth`" not in part]
    words = "; ".join(parts)
    for argument, option in _OPTIONS.items():
        words = words.replace(argument, option)
    return words


def json_text(value: Any) -> str:  # noqa: ANN401 - JSON
    r"""Return a value as JSON in one line, in which control characters stand as `\u00xx`."""
    return json_escaped(json.dumps(value, ensure_ascii=False))


def json_escaped(document: str) -> str:
    r"""Return a JSON document with all control characters in it written as `\u00xx`."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def numbered(count: int, noun: str) -> str:
    """Return `1 task` or `1,234 tasks`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def id_list(
    tasks: Iterable[tuple[int, int]], *, with_project: bool = False, limit: int = IDS_LENGTH
) -> str:
    """Return task ids as `64-66, 70` or, when that gets long, `64, 66, 68 and 1,234 more`.

    Args:
        tasks: Project and id of each task.
        with_project: Whether to write the project as well: `2:64-66, 70 3:71`.
        limit: Characters at most, more or less.
    """
    ordered = sorted(tasks)
    text = ""
    before = None
    written = 0
    while written < len(ordered) and len(text) < limit:
        (project_id, first), last = ordered[written], ordered[written][1]
        while written < len(ordered) and ordered[written] == (project_id, last):
            last += 1
            written += 1
        same = project_id == before or not with_project
        text += (", " if same else " ") * bool(text) + f"{project_id}:" * (not same)
        text += str(first) if last == first + 1 else f"{first}-{last - 1}"
        before = project_id
    rest = len(ordered) - written
    return text + f" and {rest:,} more" * bool(rest)


def without_secrets(url: str) -> str:
    """Return a URL with the login and password in it hidden."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc="***@" + host)) if at and login else url
