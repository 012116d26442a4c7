"""Task ids in the order in which they were asked for, with a number beside each. Pure."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections import Counter
from functools import partial
from itertools import islice
from operator import lt
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence


FEW: Final = 8
"""Ids of which each is faster looked up than all of them together."""

SCANS: Final = 16
"""Numbers of which each is faster counted among bytes than all of them together."""


class Roll:
    """Keeps all ids; 9 bytes each besides the ids themselves as long as they ascend.

    Ids that ascend are found by their distance from the first one, or by bisection if there are
    gaps, all others by an index (another 40 bytes each), which is made when the first one comes
    that does not. Numbers take a byte each, or four once there is one that a byte cannot hold.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.codes: bytearray | array[int] = bytearray()
        self._index: dict[int, int] | None = None
        # Whether the ids ascend and have no gaps, as those often do that a server counts out.
        self._gapless = True
        # Whether a copy has the same ids, which then must not change.
        self._shared = False

    @classmethod
    def of(cls, codes: Mapping[int, int]) -> Roll:
        """Make a roll of numbers by id."""
        roll = cls()
        roll.put(roll.add(list(codes), 0)[0], list(codes.values()))
        return roll

    def add(self, task_ids: list[int], code: int) -> tuple[list[int], list[int]]:
        """Enter those ids that are not there yet: give these in order, and those that were."""
        known: list[int] = []
        if self._shared:
            self.ids = self.ids.copy()
            self._index = self._index and self._index.copy()
            self._shared = False
        if self._index is None and not self._follow(task_ids):
            self._index = dict(zip(self.ids, range(len(self.ids)), strict=True))
        if self._index is not None:
            fresh = dict.fromkeys(task_ids)
            known = list(self._index.keys() & fresh)
            for task_id in known:
                del fresh[task_id]
            task_ids = list(fresh)
            start = len(self.ids)
            self._index.update(zip(task_ids, range(start, start + len(task_ids)), strict=True))
        ids = self.ids
        ids += task_ids
        self._gapless = self._index is None and (not ids or ids[-1] - ids[0] < len(ids))
        packed = self._packed([code])  # first: it may put another container in the codes' place
        self.codes.extend(packed * len(task_ids))
        return task_ids, known

    def _follow(self, task_ids: list[int]) -> bool:
        """Tell whether ids ascend, and from the last one on."""
        if not task_ids:
            return True
        return (not self.ids or task_ids[0] > self.ids[-1]) and all(
            map(lt, task_ids, islice(task_ids, 1, None))
        )

    def place(self, task_id: object) -> int | None:
        """Give the number of ids before this one, or None if it is not there."""
        if self._index is not None:
            return self._index.get(task_id)  # type: ignore[call-overload, no-any-return]
        ids = self.ids
        try:
            if self._gapless and isinstance(task_id, int):
                place = task_id - ids[0]
                return place if 0 <= place < len(ids) else None
            place = bisect_left(ids, task_id)  # type: ignore[call-overload]
            return place if ids[place] == task_id else None
        except (IndexError, TypeError, ValueError):  # behind the last one, or nothing like an id
            return None

    def __contains__(self, task_id: object) -> bool:
        return self.place(task_id) is not None

    def codes_at(self, task_ids: list[int]) -> Sequence[int]:
        """Give the numbers of some of the ids."""
        codes, places = self.codes, self._places(task_ids)
        if isinstance(places, range):
            return codes[places.start : places.stop]
        return [codes[place] for place in places]

    def put(self, task_ids: list[int], codes: Sequence[int]) -> None:
        """Change the numbers of some of the ids."""
        packed, places = self._packed(codes), self._places(task_ids)
        held: MutableSequence[int] = self.codes
        if isinstance(places, range):
            held[places.start : places.stop] = packed
        else:
            for place, code in zip(places, packed, strict=True):
                held[place] = code

    def put_all(self, task_ids: list[int], code: int, was: int | None = None) -> None:
        """Give some of the ids the same number.

        Args:
            task_ids: The ids.
            code: The number.
            was: The number that all of them have, where it is known.
        """
        packed = self._packed([code])
        held = self.codes
        if was is None or self._index is not None or isinstance(held, array):
            self.put(task_ids, packed * len(task_ids))
        else:
            self._flip(held, sorted(task_ids), bytes([was]), bytes(packed))

    def _flip(self, held: bytearray, task_ids: list[int], was: bytes, code: bytes) -> None:
        """Change the number that some of the ids have; they ascend."""
        if len(task_ids) < FEW:
            self.put(task_ids, code * len(task_ids))
            return
        place_of = self._finder()
        start, end = place_of(task_ids[0]), place_of(task_ids[-1]) + 1
        if held.count(was, start, end) == len(task_ids):
            # Between the first and the last there are no others with this number.
            held[start:end] = held[start:end].translate(bytes.maketrans(was, code))
        else:
            middle = len(task_ids) // 2
            self._flip(held, task_ids[:middle], was, code)
            self._flip(held, task_ids[middle:], was, code)

    def _places(self, task_ids: list[int]) -> range | list[int]:
        """Give the places of some of the ids."""
        if not task_ids:
            return range(0)
        place_of = self._finder()
        start = place_of(task_ids[0])
        if self.ids[start : start + len(task_ids)] == task_ids:
            return range(start, start + len(task_ids))
        return list(map(place_of, task_ids))

    def _finder(self) -> Callable[[int], int]:
        """Give what gives the place of an id that is there."""
        if self._index is not None:
            return self._index.__getitem__
        return self.ids[0].__rsub__ if self._gapless else partial(bisect_left, self.ids)

    def _packed(self, codes: Sequence[int]) -> bytes | array[int]:
        """Give numbers in the form in which the roll holds them."""
        if isinstance(self.codes, bytearray):
            try:
                return bytes(codes)
            except ValueError:  # one of them is too large
                wide = bytearray(4 * len(self.codes))
                wide[0 if sys.byteorder == "little" else 3 :: 4] = self.codes
                self.codes = array("I", bytes(wide))
        return array("I", list(codes))

    def entries(self) -> Iterable[tuple[int, int]]:
        """Go through ids and numbers, in order."""
        return zip(self.ids, self.codes, strict=True)

    def tally(self) -> Counter[int]:
        """Count how many ids have each number."""
        held = self.codes
        there = [n for n in range(256) if n in held] if isinstance(held, bytearray) else []
        if not 0 < len(there) <= SCANS:
            return Counter(held)
        return Counter({code: held.count(code) for code in there})

    def may_hold(self, codes: set[int]) -> bool:
        """Tell, without going through all, whether an id may have one of some numbers."""
        held = self.codes
        return isinstance(held, array) or any(code in held for code in codes if code < 256)

    def with_codes(self, changes: dict[int, int]) -> Roll:
        """Make a copy in which some of the ids have other numbers."""
        self._shared = True
        copy = Roll()
        copy.ids = self.ids
        copy.codes = self.codes[:]
        copy._index = self._index
        copy._gapless = self._gapless
        copy._shared = True
        copy.put(list(changes), list(changes.values()))
        return copy


class Window:
    """A roll of ids that may be dropped again; for some 100 bytes each until then."""

    def __init__(self) -> None:
        self._codes: dict[int, int] = {}

    def add(self, task_ids: list[int], code: int) -> tuple[list[int], list[int]]:
        """Enter those ids that are not there: give these in order, and those that were."""
        fresh = dict.fromkeys(task_ids, code)
        known = list(self._codes.keys() & fresh)
        for task_id in known:
            del fresh[task_id]
        self._codes |= fresh
        return list(fresh), known

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._codes

    def codes_at(self, task_ids: list[int]) -> Sequence[int]:
        """Give the numbers of some of the ids."""
        return list(map(self._codes.__getitem__, task_ids))

    def put(self, task_ids: list[int], codes: Sequence[int]) -> None:
        """Change the numbers of some of the ids."""
        self._codes.update(zip(task_ids, codes, strict=True))

    def put_all(self, task_ids: list[int], code: int, was: int | None = None) -> None:
        """Give some of the ids the same number."""
        del was
        self._codes |= dict.fromkeys(task_ids, code)

    def drop(self, task_ids: Iterable[int]) -> None:
        """Forget some of the ids."""
        for task_id in task_ids:
            del self._codes[task_id]

    def entries(self) -> Iterable[tuple[int, int]]:
        """Go through ids and numbers, in order."""
        return self._codes.items()

    def may_hold(self, codes: set[int]) -> bool:
        """Tell whether an id may have one of some numbers: the window is small."""
        return bool(self._codes and codes)

    def with_codes(self, changes: dict[int, int]) -> Iterable[tuple[int, int]]:
        """Go through ids and numbers, where those of some of the ids are others."""
        return (self._codes | changes).items()
