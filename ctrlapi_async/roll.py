"""Task ids in the order in which they were asked for, each once, with a number beside each. Pure.

A task's *place* is how many were asked for before it. Whoever knows the places of tasks reads
and writes their numbers without looking any up; a range of places costs next to nothing.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from itertools import repeat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Places = range | list[int]


class Roll:
    """Keeps all ids; 12 bytes each besides the ids themselves as long as they ascend.

    Ids that ascend are found by their distance from the first one, or by bisection if there are
    gaps, all others by an index (another 40 bytes each), which is made when the first one comes
    that does not.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.codes = array("I")
        self._index: dict[int, int] | None = None

    @classmethod
    def of(cls, codes: Mapping[int, int]) -> Roll:
        """Make a roll of numbers by id."""
        roll = cls()
        roll.put(roll.add(list(codes), 0)[0], list(codes.values()))
        return roll

    def add(self, task_ids: list[int], code: int) -> tuple[range, list[int]]:
        """Enter those ids that are not there yet: give their places, and the ids that were."""
        known: list[int] = []
        if self._index is None and not self._follow(task_ids):
            self._index = dict(zip(self.ids, range(len(self.ids)), strict=True))
        places = range(len(self.ids), len(self.ids) + len(task_ids))
        if self._index is not None:
            fresh = dict.fromkeys(task_ids)
            known = list(self._index.keys() & fresh)
            for task_id in known:
                del fresh[task_id]
            task_ids = list(fresh)
            places = places[: len(task_ids)]
            self._index.update(zip(task_ids, places, strict=True))
        self.ids += task_ids
        self.codes.extend(array("I", [code]) * len(task_ids))
        return places, known

    def _follow(self, task_ids: list[int]) -> bool:
        """Tell whether ids ascend, and from the last one on."""
        if not task_ids:
            return True
        return (
            (not self.ids or task_ids[0] > self.ids[-1])
            and sorted(task_ids) == task_ids
            and len(set(task_ids)) == len(task_ids)
        )

    def place(self, task_id: object) -> int | None:
        """Give the place of an id, or None if it is not there."""
        if self._index is not None:
            return self._index.get(task_id)  # type: ignore[call-overload, no-any-return]
        ids = self.ids
        try:
            if isinstance(task_id, int) and ids[-1] - ids[0] < len(ids):
                # Ids that a server counts out often have no gaps.
                place = task_id - ids[0]
                return place if 0 <= place < len(ids) else None
            place = bisect_left(ids, task_id)  # type: ignore[call-overload]
            return place if ids[place] == task_id else None
        except (IndexError, TypeError, ValueError):  # behind the last one, or nothing like an id
            return None

    def ids_at(self, places: Places) -> list[int]:
        """Give the ids of some places, in a list."""
        if isinstance(places, range):
            return self.ids[places.start : places.stop]
        ids = self.ids
        return [ids[place] for place in places]

    def codes_at(self, places: Places) -> Sequence[int]:
        """Give the numbers of some places."""
        if isinstance(places, range):
            return self.codes[places.start : places.stop]
        codes = self.codes
        return [codes[place] for place in places]

    def put(self, places: Places, codes: Sequence[int]) -> None:
        """Change the numbers of some places."""
        if isinstance(places, range):
            self.codes[places.start : places.stop] = array("I", codes)
        else:
            held = self.codes
            for place, code in zip(places, codes, strict=True):
                held[place] = code

    def put_all(self, places: Places, code: int) -> None:
        """Give some places the same number."""
        if isinstance(places, range):
            self.codes[places.start : places.stop] = array("I", [code]) * len(places)
        else:
            held = self.codes
            for place in places:
                held[place] = code

    def entries(self) -> Iterable[tuple[int, int]]:
        """Go through ids and numbers, in order."""
        return zip(self.ids, self.codes, strict=True)

    def with_codes(self, changes: dict[int, int]) -> Roll:
        """Make a copy in which the numbers of some places are others."""
        copy = Roll()
        copy.ids = self.ids.copy()
        copy.codes = self.codes[:]
        copy._index = self._index and self._index.copy()
        for place, code in changes.items():
            copy.codes[place] = code
        return copy


class Window:
    """A roll of ids that may be dropped again; for some 250 bytes each until then."""

    def __init__(self) -> None:
        self._next = 0
        self._ids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._index: dict[int, int] = {}

    def add(self, task_ids: list[int], code: int) -> tuple[range, list[int]]:
        """Enter those ids that are not there: give their places, and the ids that were there."""
        fresh = dict.fromkeys(task_ids)
        known = list(self._index.keys() & fresh)
        for task_id in known:
            del fresh[task_id]
        places = range(self._next, self._next + len(fresh))
        self._next = places.stop
        self._ids.update(zip(places, fresh, strict=True))
        self._codes.update(zip(places, repeat(code)))
        self._index.update(zip(fresh, places, strict=True))
        return places, known

    def place(self, task_id: int) -> int | None:
        """Give the place of an id, or None if it is not there."""
        return self._index.get(task_id)

    def ids_at(self, places: Places) -> list[int]:
        """Give the ids of some places, in a list."""
        return list(map(self._ids.__getitem__, places))

    def codes_at(self, places: Places) -> Sequence[int]:
        """Give the numbers of some places."""
        return list(map(self._codes.__getitem__, places))

    def put(self, places: Places, codes: Sequence[int]) -> None:
        """Change the numbers of some places."""
        self._codes.update(zip(places, codes, strict=True))

    def put_all(self, places: Places, code: int) -> None:
        """Give some places the same number."""
        self._codes.update(zip(places, repeat(code)))

    def drop(self, places: Iterable[int]) -> None:
        """Forget what stands in some places."""
        for place in places:
            del self._codes[place], self._index[self._ids.pop(place)]

    def entries(self) -> Iterable[tuple[int, int]]:
        """Go through ids and numbers, in order."""
        return zip(self._ids.values(), self._codes.values(), strict=True)

    def with_codes(self, changes: dict[int, int]) -> Iterable[tuple[int, int]]:
        """Go through ids and numbers, where those of some places are others."""
        codes = self._codes | changes
        return zip(self._ids.values(), codes.values(), strict=True)
