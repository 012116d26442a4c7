"""The errors that a run keeps for its end."""

from __future__ import annotations

from collections import Counter

from ctrlapi_async import RequestError
from ctrlapi_async._bulk.causes import MAX_OF_KIND, Causes


def test_each_error_is_kept_once_and_so_many_of_a_kind_at_most() -> None:
    causes = Causes()
    for _ in range(2):
        for number in range(3 * MAX_OF_KIND):
            causes.note(RequestError(f"fault {number}"))
        causes.note(ValueError("of another kind"))
    assert Counter(map(type, causes.errors)) == {RequestError: MAX_OF_KIND, ValueError: 1}
    assert str(causes.errors[0]) == "fault 0"
