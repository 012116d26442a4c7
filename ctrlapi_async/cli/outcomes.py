"""Outcomes in words and as JSON: those of a stop, and the statuses that a check found. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

import ctrlapi_async as api
from ctrlapi_async import StopResult, TaskStatus
from ctrlapi_async.cli.text import json_escaped, json_text, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ctrlapi_async import StopOutcome, StopReport

NO_ANSWER: Final = frozenset({StopResult.NOT_SENT, StopResult.UNCONFIRMED})
REFUSED: Final = frozenset({StopResult.NOT_FOUND, StopResult.UNAVAILABLE})
NEED_ATTENTION: Final = NO_ANSWER | REFUSED | {StopResult.STILL_RUNNING}

LABELS: Final = 12
"""Different labels that are counted one by one; servers may know many statuses."""

_STYLES: Final = {
    StopResult.STOP_SENT: "green",
    StopResult.WOULD_STOP: "green",
    StopResult.STILL_RUNNING: "yellow",
    StopResult.NOT_FOUND: "yellow",
    StopResult.UNAVAILABLE: "yellow",
    StopResult.NOT_SENT: "red",
    StopResult.UNCONFIRMED: "red",
}
_STATUS_ORDER: Final = {str(status): place for place, status in enumerate(TaskStatus)}
_RESULT_ORDER: Final = {result: place for place, result in enumerate(StopResult)}

_Order = tuple[int, int, str]


@frozen
class Form:
    """How outcomes are shown.

    Attributes:
        label: What happened to a task, in a word or two: in tables and in the progress alike.
        members: A task's JSON object.
        document: The JSON document of some outcomes of a report.
        headers: The headers of the columns for label and status.
        cells: What these columns hold.
        order: What sorts groups of tasks.
    """

    label: Callable[[StopOutcome], str]
    members: Callable[[StopOutcome], dict[str, Any]]
    document: Callable[[StopReport, Iterable[StopOutcome]], str]
    headers: tuple[str, ...]
    cells: Callable[[StopOutcome], tuple[str, ...]]
    order: Callable[[StopOutcome], _Order]

    def line(self, outcome: StopOutcome) -> str:
        """Return a task's line of NDJSON."""
        return json_text(self.members(outcome)) + "\n"


class Tally:
    """Counts outcomes in the words of the tables, and in their order.

    Args:
        form: How outcomes are shown.
    """

    def __init__(self, form: Form) -> None:
        self._form = form
        self._counts: Counter[tuple[StopResult, str | None]] = Counter()
        self._samples: dict[tuple[StopResult, str | None], StopOutcome] = {}

    def take(self, outcome: StopOutcome) -> None:
        """Count an outcome."""
        kind = (outcome.result, outcome.status)
        self._counts[kind] += 1
        if kind not in self._samples:
            self._samples[kind] = outcome

    def __str__(self) -> str:
        counts: Counter[str] = Counter()
        for kind in sorted(self._counts, key=lambda kind: self._form.order(self._samples[kind])):
            counts[self._form.label(self._samples[kind])] += self._counts[kind]
        labels = list(counts)
        words = [f"{counts[label]:,} {label}" for label in labels[:LABELS]]
        if len(labels) > LABELS:
            words.append(f"{sum(counts[label] for label in labels[LABELS:]):,} others")
        return ", ".join(words)


def style(outcome: StopOutcome) -> str:
    """Return the colour of a task in a table."""
    return _STYLES.get(outcome.result, "")


def _order_of_stops(outcome: StopOutcome) -> _Order:
    return _RESULT_ORDER[outcome.result], *_place(outcome)


def _order_of_statuses(outcome: StopOutcome) -> _Order:
    # The tasks without a status come last.
    place, status = _place(outcome)
    return place, _RESULT_ORDER[outcome.result], status


def _place(outcome: StopOutcome) -> tuple[int, str]:
    """Return the place of a task's status in the life of a task; unknown ones come later."""
    status = outcome.status or ""
    return _STATUS_ORDER.get(status, len(_STATUS_ORDER) + (not status)), status


def unknown_status(outcome: StopOutcome) -> bool:
    """Return whether a task has a status that this version does not know."""
    return outcome.status is not None and not isinstance(outcome.status, TaskStatus)


def _result_words(outcome: StopOutcome) -> str:
    return outcome.result.replace("_", " ")


def _status_words(outcome: StopOutcome) -> str:
    if outcome.status is not None and outcome.result is not StopResult.NOT_FOUND:
        return visible(outcome.status)
    return "no answer" if outcome.result is StopResult.NOT_SENT else _result_words(outcome)


def _stop_members(outcome: StopOutcome) -> dict[str, Any]:
    return {
        "task_id": outcome.task_id,
        "project_id": outcome.project_id,
        "result": outcome.result,
        "status": outcome.status,
        "error": outcome.error,
        "restarted_as": outcome.restarted_as,
    }


def _status_members(outcome: StopOutcome) -> dict[str, Any]:
    members = _stop_members(outcome)
    del members["result"]
    return members


def _stop_document(report: StopReport, outcomes: Iterable[StopOutcome]) -> str:
    return json_escaped(api.StopReport.of(outcomes, report.stats).to_json()) + "\n"


def _status_document(_: StopReport, outcomes: Iterable[StopOutcome]) -> str:
    return json_text({"tasks": list(map(_status_members, outcomes))}) + "\n"


STOPS: Final = Form(
    label=_result_words,
    members=_stop_members,
    document=_stop_document,
    headers=("Outcome", "Status"),
    cells=lambda outcome: (_result_words(outcome), visible(outcome.status or "")),
    order=_order_of_stops,
)
"""For `stop`: what became of each stop."""

STATUSES: Final = Form(
    label=_status_words,
    members=_status_members,
    document=_status_document,
    headers=("Status",),
    cells=lambda outcome: (_status_words(outcome),),
    order=_order_of_statuses,
)
"""For `status`, which is a stop that is never sent: what the check found."""
