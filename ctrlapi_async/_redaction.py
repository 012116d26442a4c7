"""Takes credentials out of texts that go to people, logs and reports. Pure.

One compiled alternation finds every known secret in every form in which servers send it back, and
the userinfo of every URL, in one pass over the text, however long the secrets are.
"""

from __future__ import annotations

import html
import json
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MASK: Final = "***"
CUT: Final = "..."
"""What stands where an excerpt was cut off its text."""

LONGEST: Final = 4096
"""Characters of a text that are read; no error shows as many."""

_PLAIN_CHARACTER: Final = r"[^\s/?#\\<>\"']"
_QUOTED_CHARACTER: Final = r"(?:[^\s/?#\\<>\"'%]|%(?!2[Ff]))"
_ALWAYS: Final = re.compile(
    "|".join(
        [
            # The userinfo of a URL, after `//`, in JSON `\/\/`, or `%2F%2F` where all is quoted.
            # None of its characters begins another match, or long texts would cost a square.
            rf"((?:\\?/){{2}}){_PLAIN_CHARACTER}+(?:@|%40)",
            rf"((?:%2[Ff]){{2}}){_QUOTED_CHARACTER}+(?:@|%40)",
            # A signature, which is new for each request.
            r"(APIAuth-[\w-]{1,40}\s+)[^\s\"'<]+",
        ]
    )
)
"""What is secret in any text; the group before it stays."""
_MARKS: Final = ("//", "\\/", "%2", "APIAuth-")
"""One of these stands in each text in which `_ALWAYS` finds something."""
_SECRET_HEADERS: Final = re.compile(
    "auth|cookie|credential|jwt|key|pass|secret|session|sign|token", re.IGNORECASE
)
_SECRET_WORD: Final = 7
"""Characters from which a word of a secret header is a secret; "Bearer" has fewer."""
_LEAST_OVERLAP: Final = 4
"""Characters of a secret at the edge of an excerpt that give it away."""


class Redactor:
    """Replaces secrets by `***`.

    Args:
        secrets: Passwords, tokens, keys; empty ones are ignored.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms = sorted(
            {form for secret in secrets if secret for form in _as_echoed(secret)},
            key=len,
            reverse=True,  # of two that begin alike the longer is to be found
        )
        self._marks = (*_MARKS, *self._forms)
        self._pattern = re.compile("|".join([*map(re.escape, self._forms), _ALWAYS.pattern]))

    def redact(self, text: str) -> str:
        """Return a text, or its beginning, without the secrets and the userinfo of URLs."""
        if len(text) > LONGEST:
            text = text[:LONGEST] + CUT
        if self._may_hold_secrets(text):
            text = self._pattern.sub(_mask, text)
        if text.startswith(CUT):
            core = text.removeprefix(CUT)
            inside = max((_ending_at_start(core, form) for form in self._forms), default=0)
            text = CUT + MASK * (inside > 0) + core[inside:]
        if text.endswith(CUT):
            core = text.removesuffix(CUT)
            inside = max((_beginning_at_end(core, form) for form in self._forms), default=0)
            text = core[: len(core) - inside] + MASK * (inside > 0) + CUT
        return text

    def finds(self, text: str) -> bool:
        """Return whether a text holds a secret."""
        return self._may_hold_secrets(text) and self._pattern.search(text) is not None

    def _may_hold_secrets(self, text: str) -> bool:
        # Ten times as fast as the pattern, and most texts hold none.
        return any(mark in text for mark in self._marks)


def secrets_of_headers(headers: Mapping[str, str]) -> list[str]:
    """Return what is secret in headers: values of headers with such names, and their words."""
    secrets = []
    for name, value in headers.items():
        if _SECRET_HEADERS.search(name):
            words = re.split(r"[\s;,]+", value)
            parts = [part for word in words for part in (word, word.partition("=")[2])]
            secrets += [value, *(part for part in parts if len(part) >= _SECRET_WORD)]
    return secrets


def _mask(match: re.Match[str]) -> str:
    before = next(filter(None, match.groups()), "")
    return before + MASK + "@" * match[0].endswith(("@", "%40"))


def _as_echoed(secret: str) -> set[str]:
    """Return all forms in which a server may send a secret back."""
    return {
        secret,
        html.escape(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        secret.replace("/", "\\/"),
        json.dumps(secret)[1:-1].replace("/", "\\/"),
        quote(secret, safe=""),
        quote(secret),
    }


def _ending_at_start(text: str, secret: str) -> int:
    """Return how many characters at the text's start are the end of a secret that was cut."""
    head = text[: len(secret) - 1]
    end = len(head)
    while (start := head.rfind(secret[-_LEAST_OVERLAP:], 0, end)) >= 0:
        size = start + _LEAST_OVERLAP
        if secret.endswith(head[:size]):
            return size
        end = size - 1
    return 0


def _beginning_at_end(text: str, secret: str) -> int:
    """Return how many characters at the text's end are the beginning of a secret that was cut."""
    tail = text[max(0, len(text) - len(secret) + 1) :]
    start = -1
    while (start := tail.find(secret[:_LEAST_OVERLAP], start + 1)) >= 0:
        if secret.startswith(tail[start:]):
            return len(tail) - start
    return 0
