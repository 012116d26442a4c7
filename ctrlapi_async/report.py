"""Reports: one outcome a task, in the order in which the tasks were asked for. Pure."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import ItemsView, Mapping, ValuesView
from functools import cache, cached_property
from itertools import starmap
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import field, frozen
from cattrs import BaseValidationError, transform_error
from cattrs.preconf.msgspec import MsgspecJsonConverter, make_converter

from ctrlapi_async.models import (
    OutcomeFields,
    StopOutcome,
    StopResult,
    StopStats,
    TaskState,
    TaskStatus,
    parse_status,
)
from ctrlapi_async.roll import Roll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
K = TypeVar("K")


@frozen(cache_hash=True)
class Verdict:
    """What is known of a task apart from its id; tasks that ended alike share one."""

    project_id: int
    result: StopResult
    status: TaskStatus | str | None = None
    error: str | None = None

    def outcome(self, task_id: int) -> StopOutcome:
        """Give the outcome of a task that has this verdict."""
        outcome = OutcomeFields(task_id, self.project_id, self.result, self.status, self.error)
        # What is made frozen takes three times as long, and there may be a million of them.
        outcome.__class__ = StopOutcome
        return cast("StopOutcome", outcome)


class _ByTask(Mapping[int, T]):
    """What the reports share: tasks in the order asked for, each with a number that says what of.

    A number a task: a million tasks take no more than a dozen megabytes, and are out of the
    garbage collector's sight.
    """

    __slots__ = ()
    _roll: Roll

    def __iter__(self) -> Iterator[int]:
        return iter(self._roll.ids)

    def __len__(self) -> int:
        return len(self._roll.ids)

    def __contains__(self, task_id: object) -> bool:
        return self._roll.place(task_id) is not None

    @abstractmethod
    def _walk(self) -> Iterator[T]:
        """Give the values in order, without looking each one up."""

    def values(self) -> ValuesView[T]:
        """Give a view of the values, in order."""
        return _Values(self)

    def items(self) -> ItemsView[int, T]:
        """Give a view of pairs of task id and value, in order."""
        return _Pairs(self)

    def _code(self, task_id: int) -> int:
        place = self._roll.place(task_id)
        if place is None:
            raise KeyError(task_id)
        return self._roll.codes[place]

    def _ids(self, wanted: set[int]) -> list[int]:
        """Give the ids of the tasks with one of these numbers, in order."""
        return [task_id for task_id, code in self._roll.entries() if code in wanted]

    def _shown(self, counts: Iterable[tuple[str, int]]) -> str:
        """Give the repr: how many tasks there are, and how many of each kind."""
        total = len(self)
        words = ", ".join(f"{count} {kind}" for kind, count in counts)
        return f"{type(self).__name__}({total} task{'s' * (total != 1)}{': ' * bool(words)}{words})"


def _numbered(kinds: Iterable[tuple[int, K]]) -> tuple[Roll, tuple[K, ...]]:
    """Give each task id its kind's number, and the kinds by number; a later one for an id wins."""
    numbers: dict[K, int] = {}
    codes = {task_id: numbers.setdefault(kind, len(numbers)) for task_id, kind in kinds}
    return Roll.of(codes), tuple(numbers)


class _Values(ValuesView[T]):
    """Goes through the values without looking each one up."""

    _mapping: _ByTask[T]

    def __iter__(self) -> Iterator[T]:
        return self._mapping._walk()  # noqa: SLF001 - of the same house


class _Pairs(ItemsView[int, T]):
    """Goes through ids and values without looking each one up."""

    _mapping: _ByTask[T]

    def __iter__(self) -> Iterator[tuple[int, T]]:
        return zip(self._mapping, self._mapping._walk(), strict=True)  # noqa: SLF001 - as above


@frozen(eq=False, repr=False, kw_only=True)
class StopReport(_ByTask[StopOutcome]):
    """An immutable mapping of task id to `StopOutcome`, in the order asked for.

    Reports are made by a session, by `of`, by `from_json` and by `|`. Two are equal if they
    hold the same outcomes in the same order. Reports pickle.

    Attributes:
        stats: What the run cost, a `StopStats`.
    """

    _roll: Roll = field(factory=Roll)
    _verdicts: tuple[Verdict, ...] = ()
    stats: StopStats = field(factory=StopStats)

    @classmethod
    def of(cls, outcomes: Iterable[StopOutcome], stats: StopStats | None = None) -> StopReport:
        """Make a report of outcomes; of several for one task the last wins, in the first's place.

        Args:
            outcomes: What became of each task.
            stats: What it cost.
        """
        roll, verdicts = _numbered(
            (one.task_id, Verdict(one.project_id, one.result, one.status, one.error))
            for one in outcomes
        )
        return cls(roll=roll, verdicts=verdicts, stats=stats or StopStats())

    def __getitem__(self, task_id: int) -> StopOutcome:
        return self._verdicts[self._code(task_id)].outcome(task_id)

    def _walk(self) -> Iterator[StopOutcome]:
        verdicts = self._verdicts
        return (verdicts[code].outcome(task_id) for task_id, code in self._roll.entries())

    def ids(self, *results: StopResult) -> list[int]:
        """Give the ids of the tasks with one of these results, in order.

        Args:
            results: The results looked for.
        """
        return self._ids({n for n, one in enumerate(self._verdicts) if one.result in results})

    @cached_property
    def counts(self) -> Mapping[StopResult, int]:
        """How many tasks have each result; every `StopResult` is a key."""
        counts = dict.fromkeys(StopResult, 0)
        for code, count in self._roll.tally().items():
            counts[self._verdicts[code].result] += count
        return MappingProxyType(counts)

    @property
    def complete(self) -> bool:
        """Whether the server answered for every task: no NOT_SENT and no UNCONFIRMED."""
        return not (self.counts[StopResult.NOT_SENT] or self.counts[StopResult.UNCONFIRMED])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StopReport):
            return NotImplemented
        mine, theirs = self._roll, other._roll
        return mine.ids == theirs.ids and all(
            self._verdicts[code] == other._verdicts[its]  # noqa: SLF001 - of its own kind
            for code, its in set(zip(mine.codes, theirs.codes, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # as long as its contents: too dear for a key

    def __or__(self, other: StopReport) -> StopReport:
        if not isinstance(other, StopReport):
            return NotImplemented
        numbers: dict[Verdict, int] = {}
        codes: dict[int, int] = {}
        for report in (self, other):
            renumbered = [numbers.setdefault(one, len(numbers)) for one in report._verdicts]
            codes.update((n, renumbered[code]) for n, code in report._roll.entries())
        stats = self.stats | other.stats
        return StopReport(roll=Roll.of(codes), verdicts=tuple(numbers), stats=stats)

    def __repr__(self) -> str:
        return self._shown((result, count) for result, count in self.counts.items() if count)

    def to_json(self) -> str:
        """Give the report as JSON text: `{"outcomes": [...], "stats": {...}}`."""
        return _json().dumps(_Document(list(self.values()), self.stats)).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> StopReport:
        """Read what `to_json` wrote.

        Args:
            text: The JSON text.

        Raises:
            ValueError: The text is no such JSON; the message says where.
        """
        try:
            document = _json().loads(text.encode() if isinstance(text, str) else text, _Document)
        except BaseValidationError as error:
            raise ValueError(f"not a report: {'; '.join(transform_error(error)[:3])}") from None
        except AttributeError:  # how cattrs says so
            raise ValueError("not a report: no JSON object") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"not a report: {error}") from None
        report = cls.of(document.outcomes, document.stats)
        if len(report) != len(document.outcomes):
            raise ValueError("not a report: a task_id stands in it more than once")
        return report


@frozen
class _Document:
    outcomes: list[StopOutcome]
    stats: StopStats


@frozen(eq=False, repr=False, kw_only=True)
class StatusReport(_ByTask[TaskState]):
    """An immutable mapping of task id to `TaskState`, in the order asked for.

    Reports are made by a session and by `of`.
    """

    _roll: Roll = field(factory=Roll)
    _kinds: tuple[tuple[TaskStatus | str | None, str | None], ...] = ()
    _details: Mapping[int, Mapping[str, Any]] = field(factory=dict)

    @classmethod
    def of(cls, states: Iterable[TaskState]) -> StatusReport:
        """Make a report of rows; of several for one task the last wins, in the first's place.

        Args:
            states: A row for each task.
        """
        rows = {state.task_id: state for state in states}
        roll, kinds = _numbered((n, (state.status, state.error)) for n, state in rows.items())
        details = {n: dict(state.details) for n, state in rows.items() if state.details}
        return cls(roll=roll, kinds=kinds, details=details)

    @classmethod
    def found(cls, report: StopReport, details: Mapping[int, Mapping[str, Any]]) -> StatusReport:
        """Make a report of what a dry run found.

        Args:
            report: The run's.
            details: Other members of the rows of its tasks, by task id.
        """
        verdicts, roll = report._verdicts, report._roll  # noqa: SLF001 - of the same house
        kinds = tuple((one.status, one.error) for one in verdicts)
        return cls(roll=roll, kinds=kinds, details=details)

    def _state(self, task_id: int, code: int) -> TaskState:
        return TaskState(task_id, *self._kinds[code], self._details.get(task_id, {}))

    def __getitem__(self, task_id: int) -> TaskState:
        return self._state(task_id, self._code(task_id))

    def _walk(self) -> Iterator[TaskState]:
        return starmap(self._state, self._roll.entries())

    def ids(self, *statuses: TaskStatus | str | None) -> list[int]:
        """Give the ids of the tasks with one of these statuses, in order.

        Args:
            statuses: The statuses looked for; None for the rows without one.
        """
        return self._ids({n for n, (status, _) in enumerate(self._kinds) if status in statuses})

    def __repr__(self) -> str:
        counts: Counter[str] = Counter()
        for code, count in self._roll.tally().items():
            counts[self._kinds[code][0] or "error"] += count
        return self._shown(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _exactly(kind: type[T]) -> Callable[[object, object], T]:
    def structure(value: object, _: object) -> T:
        # By default cattrs makes 5 of "5" and True of "no".
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, not {value!r:.80}")
        return value

    return structure


def _float(value: object, _: object) -> float:
    return float(value) if type(value) is int else _exactly(float)(value, float)


@cache
def _json() -> MsgspecJsonConverter:
    """Make the converter of reports; it takes milliseconds that few who import this need."""
    json = make_converter(forbid_extra_keys=True)
    json.register_structure_hook(int, _exactly(int))
    json.register_structure_hook(str, _exactly(str))
    json.register_structure_hook(float, _float)
    # The preconfigured converter lets any str stand for a StrEnum.
    json.register_structure_hook(StopResult, lambda value, _: StopResult(value))
    json.register_structure_hook_func(
        lambda kind: kind == TaskStatus | str | None,
        lambda value, _: None if value is None else parse_status(_exactly(str)(value, str)),
    )
    json.register_unstructure_hook_func(
        lambda kind: kind == TaskStatus | str | None, lambda value: value
    )
    outcomes = json.get_structure_hook(list[StopOutcome])
    json.register_structure_hook_func(
        # By default an object passes for a list, of its members' names.
        lambda kind: kind == list[StopOutcome],
        lambda value, kind: outcomes(_exactly(list)(value, kind), kind),
    )
    return json
