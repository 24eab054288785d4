"""Packetization layer path MTU discovery for datagrams (RFC 8899). Pure.

    searching --> searched --> searching ...
        |            |  every few seconds, while packets go out: does the present size still get through?
        |            |  now and then: does a larger one? (PMTU_RAISE_TIMER)
        |            '- the kernel or ICMP says "too large": probe at once
        '- rounds: probes of several sizes together, until the largest that passes and the smallest that fails are close

ICMP may be filtered or forged, so only echoes count, and what this host itself refuses to send. An unanswered probe may
also have been lost. So each round includes a small one; a round without any answer says nothing about sizes, and a size
counts as too large only after several rounds.

A size is bytes of an IP packet with all its headers; times are seconds on the caller's clock.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

COMMON = (1200, 1280, 1400, 1420, 1440, 1460, 1472, 1480, 1492, 1500, 2002, 4352, 8166, 9000)
"""Sizes that paths have: IPv6's least, tunnels in tunnels, PPPoE, Ethernet, and plateaus of RFC 1191, section 7.1."""

ETHERNET = 1500
"""Always tried, whatever the kernel's estimate: what the interface cannot send, the kernel refuses at no cost."""

RESOLUTION = 8
"""Bytes between a size that passes and one that fails at which the search ends."""

PARTS = 5
"""Where no common size is left, the gap is divided into so many parts."""

MAX_PROBES = 3
"""Lost probes of a size after which it counts as too large (RFC 8899, section 5.1.2), on a path that loses nothing."""

MOST_PROBES = 12
"""The same on a path with much loss: two more for each lost probe that was small enough."""

SILENT_ROUNDS = 2
"""Rounds without any answer after which the size that passed before is no longer trusted."""

VERIFY_INTERVAL = 3.0
"""Seconds between two probes whether the present size still gets through, while packets go out."""

TOO_BIG_INTERVAL = 0.5
"""Seconds between two such probes at least, however often ICMP reports a packet as too big."""

RAISE_FIRST, RAISE_TIMER = 60.0, 600.0
"""Seconds until larger sizes are tried again: soon after a change, then ever later (RFC 8899, section 5.1.1)."""

FIRST_WAIT, MIN_WAIT, MAX_WAIT = 1.0, 0.1, 10.0
"""Seconds for which a round waits: before the round-trip time is known, at least, and at most."""

RTTS = 3.0
"""Round-trip times for which a round waits."""

FIRST_TOKEN = 1 << 63
"""Tokens of these probes have the highest bit set; those of keepalive probes do not."""


@dataclass(slots=True)
class _Search:
    """The largest size that passes is at least `floor` (0: nothing is known) and less than `ceiling`.

    `misses` counts unanswered probes by size, `lost` those that were small enough, `silent` the latest rounds without
    any answer.
    """

    floor: int
    ceiling: int
    began_at: float
    first_round: bool = True
    misses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    silent: int = 0


@dataclass(slots=True)
class _Round:
    """Probes that went out together, from `token` on, until `deadline`; None if no round is under way."""

    unanswered: set[int] = field(default_factory=set)
    token: int = 0
    top: int = 0
    answered: bool = False
    deadline: float | None = None


class PathMtu:
    """The search for one path. `current` is the size to use, `trusted` whether it is known to get through now.

    `searching` is False while the size is known and only verified.

    `estimate` comes from the kernel or an earlier session, and is used until an echo says more. No size below
    `smallest` is of interest, none above `largest` is possible.
    """

    current: int
    trusted: bool
    searching: bool

    def __init__(self, estimate: int, *, smallest: int, largest: int, now: float) -> None:
        self._smallest = smallest
        self._largest = largest
        self._token = FIRST_TOKEN
        self._rtt: float | None = None
        self.restart(estimate, now)

    def restart(self, estimate: int, now: float) -> None:
        """Start again: the path is another, of which the kernel has this `estimate`."""
        self.current = self._kernel = self._bounded(estimate)
        self._sent = 0
        self._verify_asked = False
        self._verified_at = -math.inf
        self._verify_at = self._raise_at = math.inf
        self._raise_after = RAISE_FIRST
        self._begin(0, self._top() + 1, now)

    def poll(self, sent: int, kernel: int, now: float) -> list[tuple[int, int]]:
        """The probes to send now, as (token, size). `sent` grows with each packet that goes out.

        `kernel` is the kernel's present estimate. It may be wrong, but a change of it starts a probe.
        """
        self._note_kernel(kernel, now)
        if self._round.deadline is not None:
            if now < self._round.deadline:
                return []
            self._evaluate(now)
        if not self.searching and now >= self._raise_at:
            self._begin(self.current, self._top() + 1, now)
        if self.searching:
            return self._probe(self._sizes(), now)
        if now >= self._verify_at:
            self._verify_at = now + VERIFY_INTERVAL
            if self._verify_asked or sent != self._sent:
                self._verify_asked = False
                self._sent = sent
                self._verified_at = now
                return self._probe([self.current], now)
        return []

    def echo(self, token: int, now: float) -> None:
        """A probe was answered, perhaps late."""
        size, probed_at = self._probed.pop(token, (0, 0.0))
        if size == 0:
            return
        sample = now - probed_at
        self._rtt = sample if self._rtt is None else max(sample, self._rtt + (sample - self._rtt) / 4)
        search, asking = self._search, self._round
        asking.unanswered.discard(size)
        asking.answered = asking.answered or token >= asking.token
        if self.searching and size > search.floor:
            search.floor = size
            if size >= search.ceiling:  # it did not fail, it was lost
                search.ceiling = max(self._top(), size) + 1
                search.misses.clear()
            self.trusted = self.trusted or size >= self.current
        if asking.deadline is not None and (not asking.unanswered or search.floor >= asking.top):
            asking.deadline = now

    def refused(self, size: int, now: float) -> None:
        """A probe of this size is too large for this host's own interface."""
        if size <= self._smallest:
            return  # nothing smaller is possible; it counts as unanswered
        self._round.unanswered.discard(size)
        if size > max(self.current, self._search.floor):
            self._search.ceiling = min(self._search.ceiling, size)
            return
        self._set(self._bounded(min(self._kernel, self.current, size - 1)))
        self._begin(0, size, now)

    def packet_too_big(self, kernel: int, now: float) -> None:
        """The kernel refused to send a packet, or ICMP says that a router did: probe the present size."""
        self._note_kernel(kernel, now)
        self._verify_soon(now)

    def next_timer(self) -> float:
        """When to call `poll` next."""
        if self._round.deadline is not None:
            return self._round.deadline
        return self._search.began_at if self.searching else min(self._verify_at, self._raise_at)

    def _begin(self, floor: int, ceiling: int, now: float) -> None:
        self.searching = True
        self.trusted = floor >= self.current
        self._search = _Search(floor, ceiling, now)
        self._round = _Round()
        self._probed: dict[int, tuple[int, float]] = {}

    def _sizes(self) -> list[int]:
        """The sizes to probe in the next round of a search."""
        search = self._search
        low, high = search.floor or self._smallest, search.ceiling
        if search.first_round:  # mostly one of these two passes and ends the search
            search.first_round = False
            sizes = {high - 1}
        else:
            sizes = {size for size in (*COMMON, self._kernel) if low < size < high}
            if not sizes:
                sizes = {low + (high - low) * part // PARTS for part in range(1, PARTS)}
        sizes.add(self.current)
        return sorted({low, *(size for size in sizes if low < size < high)})

    def _probe(self, sizes: list[int], now: float) -> list[tuple[int, int]]:
        wait = FIRST_WAIT if self._rtt is None else max(RTTS * self._rtt, MIN_WAIT)
        deadline = now + min(wait * 2**self._search.silent, MAX_WAIT)
        self._round = _Round(set(sizes), self._token + 1, max(sizes), deadline=deadline)
        probes = []
        for size in sizes:
            self._token += 1
            self._probed[self._token] = (size, now)
            probes.append((self._token, size))
        return probes

    def _evaluate(self, now: float) -> None:
        """Evaluate the round, which is over."""
        unanswered, answered, search = self._round.unanswered, self._round.answered, self._search
        self._round = _Round()
        if not self.searching:
            if unanswered:
                self._begin(0, self.current + 1, now)
            return
        if answered:
            search.silent = 0
            self._count(unanswered)
        elif unanswered:
            search.silent += 1
            if search.floor and search.silent == SILENT_ROUNDS:  # what passed before may fail now
                self._begin(0, max(search.ceiling, self.current + 1), now)
                return
        if search.floor and search.ceiling <= self.current:
            self._set(search.floor)
            self.trusted = True
        if search.floor and search.ceiling - search.floor <= RESOLUTION:
            self._finish(now)

    def _count(self, unanswered: set[int]) -> None:
        """Count these unanswered sizes: some may be too large, some probes were lost."""
        search = self._search
        search.lost += sum(size <= search.floor for size in unanswered)
        search.misses.update(size for size in unanswered if size > search.floor)
        needed = min(MAX_PROBES + 2 * search.lost, MOST_PROBES)
        failed = (size for size, misses in search.misses.items() if misses >= needed and size > search.floor)
        search.ceiling = min(search.ceiling, *failed, search.ceiling)

    def _finish(self, now: float) -> None:
        self.searching = False
        self._probed.clear()
        self._set(self._search.floor)
        self.trusted = True
        self._verify_at = now + VERIFY_INTERVAL
        if now >= self._raise_at or math.isinf(self._raise_at):
            self._raise_at = now + self._raise_after
            self._raise_after = min(self._raise_after * 2, RAISE_TIMER)

    def _set(self, size: int) -> None:
        if size < self.current:
            self._raise_at = math.inf
            self._raise_after = RAISE_FIRST
        self.current = size

    def _note_kernel(self, kernel: int, now: float) -> None:
        before, self._kernel = self._kernel, self._bounded(kernel)
        if self._kernel > max(before, self.current):
            self._raise_at = min(self._raise_at, now)
        elif self._kernel < min(before, self.current):
            self._verify_soon(now)

    def _verify_soon(self, now: float) -> None:
        if not self.searching and self._round.deadline is None:
            self._verify_asked = True
            self._verify_at = min(self._verify_at, max(now, self._verified_at + TOO_BIG_INTERVAL))

    def _top(self) -> int:
        return min(max(self._kernel, self.current, ETHERNET), self._largest)

    def _bounded(self, size: int) -> int:
        return min(max(size, self._smallest), self._largest)
