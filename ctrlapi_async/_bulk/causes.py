"""The errors that left tasks without an answer, each once."""

from __future__ import annotations

from typing import Final

MAX_OF_KIND: Final = 100
"""Different errors of one kind that are kept."""


class Causes:
    """Keeps the errors of a run for its end, in the order in which they came."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self._texts: dict[type[Exception], set[str]] = {}

    def note(self, error: Exception) -> None:
        """Keep an error, once if the same comes again and again."""
        texts = self._texts.setdefault(type(error), set())
        if str(error) not in texts and len(texts) < MAX_OF_KIND:
            texts.add(str(error))
            self.errors.append(error)
