"""Which of its two keys a client has, while its key is being changed. Pure.

A client tells its id, not which key it means, and the server learns only from the client's Finished whether it took
the right one (RFC 4279, section 2; RFC 5246, section 7.4.9). So it guesses: the key that has worked last for this id.
Where that fails, the next handshake of this id from the same address gets the other one.

Failures are easily made by anybody who knows an id. They count for the address they come from only, and where they
go on, or are so many that not all can be remembered, a coin decides: then nobody can say which key comes next, and
the client is let in after two tries on average.
"""

import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dtun.config import Key

MAX_FAILURES = 1024
"""Addresses with a failure that are remembered."""

MAX_NAMES = 4096
"""Ids of which it is remembered which key has worked last."""

MEMORY = 600.0
"""Seconds for which a failure counts."""

PUZZLING = 2
"""Failures in a row from one address after which nothing can be concluded."""


@dataclass(frozen=True, slots=True)
class _Failure:
    key: Key
    count: int
    at: float


class Keyring:
    """Chooses keys, and learns from what comes of it. `toss` is a fair coin. `source`: what an address counts as."""

    def __init__(self, toss: Callable[[], bool] = lambda: bool(secrets.randbits(1))) -> None:
        self._toss = toss
        self._failures: OrderedDict[tuple[str, str], _Failure] = OrderedDict()  # the oldest first
        self._worked: OrderedDict[str, Key] = OrderedDict()

    def choose(self, name: str, source: str, keys: Sequence[Key], now: float) -> Key:
        """The key to try with this id at this address; one of `keys`, of which there are one or two."""
        first, last = keys[0], keys[-1]
        if first is last:
            return first
        self._expire(now)
        failure = self._failures.get((name, source))
        if failure is not None and failure.key in keys:
            if failure.count < PUZZLING:
                return last if failure.key == first else first
            return first if self._toss() else last
        if len(self._failures) >= MAX_FAILURES:
            return first if self._toss() else last
        worked = self._worked.get(name)
        return last if worked == last else first

    def worked(self, name: str, source: str, key: Key) -> None:
        """The client of this id at this address has proven that it has this key."""
        self._failures.pop((name, source), None)
        self._worked[name] = key
        self._worked.move_to_end(name)
        if len(self._worked) > MAX_NAMES:
            self._worked.popitem(last=False)

    def failed(self, name: str, source: str, key: Key, now: float) -> int:
        """Somebody who gave this id did not have this key. Returns how often in a row."""
        self._expire(now)
        before = self._failures.pop((name, source), None)
        count = 1 if before is None else before.count + 1
        self._failures[name, source] = _Failure(key, count, now)
        if len(self._failures) > MAX_FAILURES:
            self._failures.popitem(last=False)
        return count

    def _expire(self, now: float) -> None:
        while self._failures:
            oldest = next(iter(self._failures))
            if now - self._failures[oldest].at <= MEMORY:
                return
            del self._failures[oldest]
