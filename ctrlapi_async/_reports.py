"""Reports: immutable mappings of task id to what is known, in the order asked for. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache, cached_property, partial
from operator import attrgetter, eq
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
from attrs import field, frozen
from cattrs import BaseValidationError, Converter, transform_error

from ctrlapi_async._models import (
    UNANSWERED,
    LazyMapping,
    StopOutcome,
    StopResult,
    StopStats,
    TaskState,
    TaskStatus,
    parse_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")


class Verdict(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """A task's outcome apart from its id; tasks with the same outcome share one object.

    `gc=False`: a dict of a million ids and verdicts is nothing that the garbage collector looks at.
    """

    project_id: int
    result: StopResult
    status: TaskStatus | str | None = None
    error: str | None = None
    restarted_as: int | None = None

    def of_restart(self, restarted_as: int | None) -> Verdict:
        """Return the verdict of a task that was restarted as another with this verdict."""
        return Verdict(self.project_id, self.result, self.status, self.error, restarted_as)

    def outcome(self, task_id: int) -> StopOutcome:
        """Return the outcome of a task that has this verdict."""
        return StopOutcome(
            task_id, self.project_id, self.result, self.status, self.error, self.restarted_as
        )


@frozen(eq=False, repr=False)
class StopReport(Mapping[int, StopOutcome]):
    """An immutable mapping of task id to `StopOutcome`, in the order asked for.

    Reports come from a session, from `of` and from `from_json`. Two are equal if they hold the
    same outcomes in the same order; `a | b` merges two, in which the outcomes of `b` win.

    Attributes:
        stats: What the run cost.
        counts: How many tasks have each result; every `StopResult` is a key.
    """

    _verdicts: Mapping[int, Verdict] = field(factory=dict, alias="_verdicts")
    stats: StopStats = field(factory=StopStats, kw_only=True)

    @classmethod
    def of(cls, outcomes: Iterable[StopOutcome], stats: StopStats | None = None) -> StopReport:
        """Return a report of outcomes; of several for one task the last wins.

        Args:
            outcomes: The outcomes, in order.
            stats: What they cost.
        """
        shared: dict[Verdict, Verdict] = {}
        verdicts: dict[int, Verdict] = {}
        for one in outcomes:
            verdict = Verdict(one.project_id, one.result, one.status, one.error, one.restarted_as)
            verdicts[one.task_id] = shared.setdefault(verdict, verdict)
        return cls(verdicts, stats=stats or StopStats())

    def __getitem__(self, task_id: int) -> StopOutcome:
        return self._verdicts[task_id].outcome(task_id)

    def __iter__(self) -> Iterator[int]:
        return iter(self._verdicts)

    def __len__(self) -> int:
        return len(self._verdicts)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._verdicts

    def ids(self, *results: StopResult) -> list[int]:
        """Return the ids of the tasks with one of these results, in order."""
        return [n for n, verdict in self._verdicts.items() if verdict.result in results]

    @cached_property
    def counts(self) -> Mapping[StopResult, int]:
        """How many tasks have each result; every `StopResult` is a key."""
        counts = Counter(map(attrgetter("result"), self._verdicts.values()))
        return MappingProxyType({result: counts[result] for result in StopResult})

    @property
    def complete(self) -> bool:
        """Whether every task has its answer: no NOT_SENT, UNCONFIRMED or STILL_RUNNING."""
        return not any(self.counts[result] for result in UNANSWERED)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StopReport):
            return NotImplemented
        return list(self._verdicts.items()) == list(other._verdicts.items())

    __hash__ = None  # type: ignore[assignment]  # as costly as it is useless

    def __or__(self, other: StopReport) -> StopReport:
        if not isinstance(other, StopReport):
            return NotImplemented
        for task_id in self._verdicts.keys() & other._verdicts.keys():
            mine, theirs = self._verdicts[task_id], other._verdicts[task_id]
            if mine.project_id != theirs.project_id:
                raise ValueError(
                    f"task {task_id} is in two projects: {mine.project_id} and {theirs.project_id}"
                )
        merged = {**self._verdicts, **other._verdicts}
        return StopReport(merged, stats=self.stats | other.stats)

    def __repr__(self) -> str:
        return _repr_of(self, self.counts)

    def to_json(self) -> str:
        """Return the report as JSON text: `{"outcomes": [...], "stats": {...}}`."""
        return _dump(_StopDocument(list(self.values()), self.stats))

    @classmethod
    def from_json(cls, text: str | bytes) -> StopReport:
        """Return the report that `to_json` wrote; members of later versions are ignored.

        Args:
            text: The JSON text.

        Raises:
            ValueError: The text is no such JSON; the message says where.
        """
        document = _load(text, _StopDocument)
        report = cls.of(document.outcomes, document.stats)
        return _expect_unique(report, len(document.outcomes))


class LazyState(Protocol):
    """A task's state that is made when it is looked up."""

    @property
    def status(self) -> TaskStatus | str | None:
        """The task's status."""

    def make(self) -> TaskState:
        """Return the state."""
        ...


@frozen(eq=False, repr=False)
class StatusReport(Mapping[int, TaskState]):
    """An immutable mapping of task id to `TaskState`, in the order asked for.

    Reports come from a session, from `of` and from `from_json`.

    Attributes:
        counts: How many tasks have each status: all of `TaskStatus`, then the others that occur.
    """

    _states: Mapping[int, TaskState | LazyState] = field(factory=dict, alias="_states")

    @classmethod
    def of(cls, states: Iterable[TaskState]) -> StatusReport:
        """Return a report of states; of several for one task the last wins."""
        return cls({state.task_id: state for state in states})

    def __getitem__(self, task_id: int) -> TaskState:
        state = self._states[task_id]
        return state if isinstance(state, TaskState) else state.make()

    def __iter__(self) -> Iterator[int]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StatusReport):
            return NotImplemented
        return dict(self.items()) == dict(other.items())

    __hash__ = None  # type: ignore[assignment]  # as costly as it is useless

    def ids(self, *statuses: TaskStatus | str | None) -> list[int]:
        """Return the ids of the tasks with one of these statuses, in order; None: without one."""
        return [n for n, state in self._states.items() if state.status in statuses]

    @cached_property
    def counts(self) -> Mapping[TaskStatus | str | None, int]:
        """How many tasks have each status: all of `TaskStatus`, then the others that occur."""
        counts: dict[TaskStatus | str | None, int] = dict.fromkeys(TaskStatus, 0)
        for state in self._states.values():
            counts[state.status] = counts.get(state.status, 0) + 1
        return MappingProxyType(counts)

    def __repr__(self) -> str:
        return _repr_of(self, {status or "error": n for status, n in self.counts.items()})

    def to_json(self) -> str:
        """Return the report as JSON text: `{"states": [...]}`."""
        return _dump(_StatusDocument(list(self.values())))

    @classmethod
    def from_json(cls, text: str | bytes) -> StatusReport:
        """Return the report that `to_json` wrote; members of later versions are ignored.

        Args:
            text: The JSON text.

        Raises:
            ValueError: The text is no such JSON; the message says where.
        """
        document = _load(text, _StatusDocument)
        return _expect_unique(cls.of(document.states), len(document.states))


def _repr_of(report: Mapping[int, Any], counts: Mapping[Any, int]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    tasks = f"{len(report)} task{'s' * (len(report) != 1)}"
    return f"{type(report).__name__}({tasks}{': ' * bool(kinds)}{kinds})"


@frozen
class _StopDocument:
    outcomes: list[StopOutcome]
    stats: StopStats


@frozen
class _StatusDocument:
    states: list[TaskState]


_Report = TypeVar("_Report", StopReport, StatusReport)


def _expect_unique(report: _Report, expected: int) -> _Report:
    if len(report) != expected:
        raise ValueError("not a report: a task_id occurs in it more than once")
    return report


def _dump(document: _StopDocument | _StatusDocument) -> str:
    return msgspec.json.encode(_converter().unstructure(document)).decode()


def _load(text: str | bytes, kind: type[T]) -> T:
    try:
        document = msgspec.json.decode(text.encode() if isinstance(text, str) else text)
        return _converter().structure(_exactly(dict)(document, kind), kind)
    except BaseValidationError as error:
        raise ValueError(f"not a report: {'; '.join(transform_error(error)[:3])}") from None
    except (msgspec.DecodeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a report: {error}") from None


def _exactly(kind: type[T]) -> Callable[[object, object], T]:
    def structure(value: object, _: object) -> T:
        # By default cattrs makes 5 of "5" and True of "no".
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, not {value!r:.80}")
        return value

    return structure


def _float(value: object, _: object) -> float:
    return float(value) if type(value) is int else _exactly(float)(value, float)


def _status(value: object, _: object) -> TaskStatus | str | None:
    return None if value is None else parse_status(_exactly(str)(value, str))


def _only(kind: type, structure: Callable[[Any, Any], T]) -> Callable[[object, object], T]:
    # By default an object passes for a list of its members' names, and a list for an object.
    return lambda value, target: structure(_exactly(kind)(value, target), target)


@cache
def _converter() -> Converter:
    """Return the converter of reports; made on first use, since that takes milliseconds."""
    converter = Converter()
    converter.register_structure_hook(int, _exactly(int))
    converter.register_structure_hook(str, _exactly(str))
    converter.register_structure_hook(float, _float)
    status, details = TaskStatus | str | None, Mapping[str, Any]
    converter.register_structure_hook_func(partial(eq, status), _status)
    converter.register_structure_hook_func(partial(eq, details), _exactly(dict))
    converter.register_unstructure_hook(LazyMapping, dict)
    # As a str it would have that one's hook.
    converter.register_structure_hook(StopResult, lambda value, _: StopResult(value))
    for kind, target in (dict, StopStats), (list, list[StopOutcome]), (list, list[TaskState]):
        structure = _only(kind, converter.get_structure_hook(target))
        converter.register_structure_hook_func(partial(eq, target), structure)
    return converter
