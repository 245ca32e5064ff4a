"""How often, in exact numbers: a token bucket for bursts, and sliding windows of a minute, an hour and a day.

Pure arithmetic on integers; the clock is passed in, in microseconds of any epoch. Nothing here knows who asks, or what
for: an amount is one request, or a number of tokens.

The two combine as *and*: what passes fits into the bucket and into each of the windows. With a burst of 10 and 60 a
minute, 200 requests at once are 10 that pass and 190 that do not; then one passes each second; and in no minute,
wherever it begins, more than 60 do. A bucket alone would let 70 through in the first one.

The bucket is the generic cell rate algorithm (ITU-T I.371), held as what is missing from it: an overdraft is a number
like any other, and is paid back at the same rate. A window is counted in slots of a sixtieth of its length, and a slot
counts until the last moment of it has left the window. So a window never holds more than its limit, at the price that
an amount is forgotten up to a sixtieth late; the usual two counters with weights guess, in both directions. A ledger
takes at most 61 slots for each window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from openai_gateway.types import Limits

SECOND = 1_000_000
WINDOWS = (("minute", 60 * SECOND), ("hour", 3600 * SECOND), ("day", 86_400 * SECOND))
SLOTS = 60
PARTS = 60 * SECOND
"""A bucket counts in these parts of one: so many a minute are then as many parts in each microsecond."""


class Rate(NamedTuple):
    """What may pass of one kind; None where nothing says so."""

    burst: int | None = None
    minute: int | None = None
    hour: int | None = None
    day: int | None = None

    @property
    def windows(self) -> Iterator[tuple[int, str, int, int]]:
        """Place, name, microseconds of a slot, and limit of each window that has one."""
        for place, ((name, length), limit) in enumerate(zip(WINDOWS, self[1:], strict=True)):
            if limit is not None:
                yield place, name, length // SLOTS, limit

    @property
    def bucket(self) -> tuple[int, int] | None:
        """What a bucket holds and what it gets back in a minute; without either there is none."""
        return (self.burst, self.minute) if self.burst is not None and self.minute else None

    @property
    def smallest(self) -> int | None:
        """The most that can ever pass at once; None: anything."""
        return min((limit for limit in self if limit is not None), default=None)

    def scaled(self, share: float) -> Rate:
        """A part of it, for one of several who cannot ask each other; at least one where there was one."""
        return Rate(*(limit and max(1, int(limit * share)) for limit in self))


def inherited(own: Limits, defaults: Limits) -> Limits:
    """The limits of a key: its own ones, and for the rest those of every key."""
    return replace(defaults, **{name: limit for name, limit in asdict(own).items() if limit is not None})


def rate_of_requests(limits: Limits) -> Rate:
    return Rate(limits.burst, limits.requests_per_minute, limits.requests_per_hour, limits.requests_per_day)


def rate_of_tokens(limits: Limits) -> Rate:
    """A minute's tokens may go at once, and no sooner again than a minute brings them back."""
    minute = limits.tokens_per_minute
    return Rate(minute, minute, limits.tokens_per_hour, limits.tokens_per_day)


class Standing(NamedTuple):
    """Where somebody stands with the rule that is closest to its end; times in microseconds."""

    rule: str
    """`burst`, or the window."""
    limit: int
    remaining: int
    reset: int
    """Until nothing of the limit is used, if nothing else comes."""


class Ledger(Struct, array_like=True):
    """What one has used. It is kept as msgpack, and `limits.lua` reads and writes the same."""

    missing: int = 0
    """From the bucket, in `PARTS`; more than the bucket holds is debt."""
    at: int = 0
    """When that was so."""
    slots: tuple[list[int], list[int], list[int]] = msgspec.field(default_factory=lambda: ([], [], []))
    """For each window: number of a slot, amount in it, number of the next …; the oldest first."""

    def advance(self, rate: Rate, now: int) -> None:
        """Forget what time has undone. A clock that was set back undoes nothing, and locks nobody out."""
        self.missing = max(0, self.missing - max(0, now - self.at) * (rate.minute or 0))
        self.at = now
        for (_, length), slots in zip(WINDOWS, self.slots, strict=True):
            current = now // (length // SLOTS)
            while slots and slots[0] < current - SLOTS:
                del slots[:2]
            ahead = 0
            while slots and slots[-2] > current:
                ahead += slots.pop()
                slots.pop()
            if ahead:
                _add(slots, current, ahead)

    def fits(self, rate: Rate, amount: int) -> bool:
        """Whether so much more may pass now. Nothing at all always may, also for whoever is in debt."""
        return not amount or (
            all(self._used(place) + amount <= limit for place, _, _, limit in rate.windows)
            and (rate.burst is None or rate.minute is None or self.missing + amount * PARTS <= rate.burst * PARTS)
        )

    def take(self, rate: Rate, amount: int) -> None:
        """Use so much, whether it fits or not."""
        if rate.bucket is not None:
            self.missing += amount * PARTS
        for place, _, slot, _ in rate.windows:
            if amount:
                _add(self.slots[place], self.at // slot, amount)

    def settle(self, rate: Rate, taken: int, reserved: int, used: int) -> None:
        """Correct what was `reserved` at the time `taken` to what has been `used` of it."""
        surplus = reserved - used
        if surplus < 0:
            self.take(rate, -surplus)
            return
        # What the bucket has got back by itself since then is not given back a second time.
        refilled = max(0, self.at - taken) * (rate.minute or 0)
        self.missing = max(0, self.missing - max(0, surplus * PARTS - refilled))
        for place, _, slot, _ in rate.windows:
            _subtract(self.slots[place], taken // slot, surplus)

    def wait(self, rate: Rate, amount: int) -> tuple[int, str]:
        """Microseconds until so much more fits, if nothing else comes, and the rule that asks for them."""
        waits = [(self._until_room(place, slot, limit - amount), name) for place, name, slot, limit in rate.windows]
        if rate.bucket is not None:
            burst, minute = rate.bucket
            waits.append((max(0, -(-(self.missing + (amount - burst) * PARTS) // minute)), "burst"))
        return max(waits, default=(0, ""))

    def standing(self, rate: Rate) -> Standing | None:
        """How much is left of the rule that has the least left; None where there are no rules."""
        windows = ((limit - self._used(place), place, name, slot, limit) for place, name, slot, limit in rate.windows)
        least = min(windows, default=None)
        if rate.bucket is not None:
            burst, minute = rate.bucket
            left = (burst * PARTS - self.missing) // PARTS
            if least is None or left < least[0]:
                return Standing("burst", burst, max(0, left), -(-self.missing // minute))
        if least is None:
            return None
        left, place, name, slot, limit = least
        return Standing(name, limit, max(0, left), self._until_room(place, slot, 0))

    def idle_at(self, rate: Rate) -> int:
        """From when on it is as good as none."""
        ends = [(self.slots[place][-2] + SLOTS + 1) * slot for place, _, slot, _ in rate.windows if self.slots[place]]
        return max([self.at + -(-self.missing // (rate.minute or 1)), *ends])

    def _used(self, place: int) -> int:
        return sum(self.slots[place][1::2])

    def _until_room(self, place: int, slot: int, most: int) -> int:
        """Microseconds until no more than `most` is in a window; a whole window where even nothing is too much."""
        slots, used, end = self.slots[place], self._used(place), self.at
        for number, amount in zip(slots[::2], slots[1::2], strict=True):
            if used <= most:
                break
            used -= amount
            end = (number + SLOTS + 1) * slot
        return slot * SLOTS if most < 0 else end - self.at


def _add(slots: list[int], number: int, amount: int) -> None:
    if slots and slots[-2] == number:
        slots[-1] += amount
    else:
        slots += [number, amount]


def _subtract(slots: list[int], number: int, amount: int) -> None:
    for place in range(0, len(slots), 2):
        if slots[place] == number:
            slots[place + 1] = max(0, slots[place + 1] - amount)
