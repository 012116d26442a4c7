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

_SLASHES: Final = r"(?:\\?/|%2[Ff]){2}"
r"""What stands before the userinfo of a URL: `//`, in JSON `\/\/`, quoted `%2F%2F`."""
_USERINFO: Final = rf"({_SLASHES})[^\s/?#\\<>\"']{{1,1000}}(?:@|%40)"
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
        self._pattern = re.compile("|".join([*map(re.escape, self._forms), _USERINFO]))

    def redact(self, text: str) -> str:
        """Return a text, or its beginning, without the secrets and the userinfo of URLs."""
        if len(text) > LONGEST:
            text = text[:LONGEST] + CUT
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
        """Tell whether a text holds a secret."""
        return self._pattern.search(text) is not None


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
    return MASK if match[1] is None else f"{match[1]}{MASK}@"


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
