"""A network without sockets that drops, doubles, delays and so reorders, always in the same way for one seed."""

import heapq
import itertools
import random
import sys
from collections import Counter
from typing import Generic, TypeVar

T = TypeVar("T")


class TerribleNetwork(Generic[T]):
    """Carries anything to anybody. Times in seconds, on the caller's clock. Without arguments it is perfect.

    `in_a_row` bounds how many datagrams to the same end it drops one after the other, for those who give up.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        drop: float = 0.0,
        double: float = 0.0,
        longest_delay: float = 0.0,
        in_a_row: int = sys.maxsize,
    ) -> None:
        self.drop = drop
        self.double = double
        self.longest_delay = longest_delay
        self._in_a_row = in_a_row
        self._dropped: Counter[T] = Counter()
        self._random = random.Random(seed)
        self._order = itertools.count()
        self._under_way: list[tuple[float, int, T, bytes]] = []

    def send(self, to: T, datagram: bytes, now: float) -> None:
        for _ in range(2 if self._random.random() < self.double else 1):
            if self._random.random() < self.drop and self._dropped[to] < self._in_a_row:
                self._dropped[to] += 1
            else:
                self._dropped[to] = 0
                arrival = now + self._random.uniform(0, self.longest_delay)
                heapq.heappush(self._under_way, (arrival, next(self._order), to, datagram))

    def arrivals(self, now: float) -> list[tuple[T, bytes]]:
        """What has arrived by now, in order of arrival."""
        arrived = []
        while self._under_way and self._under_way[0][0] <= now:
            _, _, to, datagram = heapq.heappop(self._under_way)
            arrived.append((to, datagram))
        return arrived

    def next_arrival(self) -> float | None:
        return self._under_way[0][0] if self._under_way else None
