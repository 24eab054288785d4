"""The search for the path's MTU, over simulated paths: it gets close, never too high, and notices changes."""

import heapq
import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st

from dtun.session.pmtud import RAISE_FIRST, RAISE_TIMER, RESOLUTION, PathMtu

SMALLEST, LARGEST = 576, 16384 + 57


class Path:
    """A path that carries up to `mtu` bytes, from a host whose interface sends up to `interface`.

    Nobody tells when a probe was too large, unless `icmp`: then the kernel's estimate follows.
    """

    def __init__(
        self,
        mtu: int,
        *,
        interface: int = 1500,
        estimate: int | None = None,
        loss: float = 0.0,
        rtt: float = 0.05,
        jitter: float = 0.0,
        icmp: bool = False,
        seed: int = 0,
    ) -> None:
        self.mtu, self.interface, self.loss = mtu, interface, loss
        self.rtt, self.jitter, self.icmp = rtt, jitter, icmp
        self.kernel = interface if estimate is None else estimate
        self.now = 1000.0
        self.traffic = 0
        self.busy = True
        self.probes: list[int] = []
        self.sizes: list[tuple[float, int]] = []
        self._random = random.Random(seed)
        self._order = itertools.count()
        self._echoes: list[tuple[float, int, int]] = []
        self.search = PathMtu(self.kernel, smallest=SMALLEST, largest=LARGEST, now=self.now)

    def advance(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Let time pass, at most until something is true; returns how much it was."""
        began, end = self.now, self.now + seconds
        for _ in range(100_000):
            upcoming = min([self.search.next_timer(), *(echo[0] for echo in self._echoes[:1])])
            if until() or upcoming > end:
                break
            self.now = max(self.now, upcoming)
            while self._echoes and self._echoes[0][0] <= self.now:
                self.search.echo(heapq.heappop(self._echoes)[2], self.now)
            self._poll()
        else:
            raise AssertionError("it does not come to rest")
        self.now = self.now if until() else end
        return self.now - began

    def settled(self) -> bool:
        return not self.search.searching

    def _poll(self) -> None:
        self.traffic += self.busy
        for token, size in self.search.poll(self.traffic, self.kernel, self.now):
            self.probes.append(size)
            if size > self.interface:
                self.search.refused(size, self.now)
            elif size > self.mtu:
                if self.icmp:
                    self.kernel = min(self.kernel, self.mtu)
                    self.search.packet_too_big(self.kernel, self.now)
            elif self._random.random() >= self.loss and self._random.random() >= self.loss:
                arrival = self.now + self.rtt + self._random.uniform(0, self.jitter)
                heapq.heappush(self._echoes, (arrival, next(self._order), token))
        if not self.sizes or self.sizes[-1][1] != self.search.current:
            self.sizes.append((self.now, self.search.current))


def assert_close(path: Path) -> None:
    true = min(path.mtu, path.interface)
    assert true - RESOLUTION < path.search.current <= true
    assert path.search.trusted


def test_an_ordinary_path_costs_one_round_trip_and_two_probes() -> None:
    path = Path(1500)
    assert path.advance(10, path.settled) == pytest.approx(0.05)
    assert path.search.current == 1500
    assert len(path.probes) == 2


@given(st.integers(SMALLEST, 9000), st.sampled_from((1500, 9000, 16384)), st.booleans())
@settings(max_examples=100)
def test_every_path_is_measured_to_within_some_bytes_in_seconds(mtu: int, interface: int, icmp: bool) -> None:
    path = Path(mtu, interface=interface, icmp=icmp)
    assert path.advance(60, path.settled) < 5
    assert_close(path)
    assert len(path.probes) < 150


@given(st.integers(SMALLEST, 9000), st.integers(SMALLEST, 16384))
@settings(max_examples=40)
def test_a_wrong_estimate_of_the_kernel_does_no_lasting_harm(mtu: int, estimate: int) -> None:
    path = Path(mtu, interface=1500, estimate=estimate)
    assert path.advance(60, path.settled) < 5
    assert_close(path)


@given(
    st.integers(SMALLEST, 9000),
    st.floats(0, 0.2),
    st.floats(0.001, 0.5),
    st.floats(0, 0.5),
    st.integers(0, 2**32),
)
@settings(max_examples=100)
def test_loss_and_jitter_delay_it_but_never_make_it_too_high(
    mtu: int, loss: float, rtt: float, jitter: float, seed: int
) -> None:
    path = Path(mtu, loss=loss, rtt=rtt, jitter=jitter, seed=seed)
    path.advance(60, path.settled)
    for _ in range(40):
        path.advance(RAISE_FIRST)
        if path.settled():
            assert path.search.current <= min(mtu, 1500)
    # One verdict in thousands is wrong, for a while; the next look upwards puts it right.
    path.advance(
        10 * RAISE_TIMER, lambda: path.settled() and min(mtu, 1500) - path.search.current < RESOLUTION
    )
    assert_close(path)


@given(st.integers(SMALLEST, 1492), st.integers(8, 900), st.floats(0.001, 0.3))
@settings(max_examples=100)
def test_a_path_that_shrinks_is_noticed_within_seconds(mtu: int, step: int, rtt: float) -> None:
    before = min(mtu + step, 1500)
    path = Path(before, rtt=rtt)
    path.advance(20)
    assert_close(path)
    path.mtu = mtu
    took = path.advance(30, lambda: path.search.current <= mtu)
    assert took < 3 + 20 * max(rtt, 0.034)
    path.advance(30, path.settled)
    assert_close(path)


def test_the_size_is_in_doubt_from_the_first_probe_that_is_not_answered() -> None:
    path = Path(1500)
    path.advance(20)
    path.mtu = 1280
    assert path.advance(10, lambda: not path.search.trusted) <= 3.2
    assert path.advance(10, lambda: path.search.current == 1280) <= 0.6


def test_what_icmp_says_is_checked_at_once() -> None:
    path = Path(1500, icmp=True)
    path.advance(20)
    path.mtu = path.kernel = 1400
    path.search.packet_too_big(1400, path.now)
    assert path.advance(10, lambda: path.search.current == 1400) <= 1.0


def test_forged_icmp_changes_nothing_and_costs_little() -> None:
    path = Path(1500)
    path.advance(20)
    before = len(path.probes)
    for _ in range(1000):
        path.search.packet_too_big(552, path.now)
        path.advance(0.01)
    assert path.search.current == 1500
    assert path.search.trusted
    assert len(path.probes) - before <= 10 / 0.5 + 1


def test_an_interface_that_shrinks_under_the_present_size_is_believed_at_once() -> None:
    path = Path(9000, interface=9000)
    path.advance(20)
    path.interface = path.kernel = 1400
    path.search.packet_too_big(1400, path.now)
    assert path.advance(10, lambda: path.search.current == 1400) == 0
    path.advance(10, path.settled)
    assert_close(path)


def test_a_path_that_grows_is_found_at_the_raise_timer() -> None:
    path = Path(1300)
    path.advance(6 * 3600)
    assert_close(path)
    path.mtu = 1500
    path.advance(601)
    assert path.search.current == 1500


def test_an_interface_that_grows_is_tried_at_once() -> None:
    path = Path(9000, interface=1500)
    path.advance(20)
    path.interface = path.kernel = 9000
    path.advance(4)
    assert path.search.current == 9000


def test_without_traffic_nothing_is_asked_until_the_raise_timer() -> None:
    path = Path(1500)
    path.busy = False
    path.advance(20)
    path.probes.clear()
    path.advance(RAISE_FIRST / 2)
    assert path.probes == []


def test_with_traffic_it_costs_a_probe_every_three_seconds() -> None:
    path = Path(1500)
    path.advance(20)
    path.probes.clear()
    path.advance(30)
    assert path.probes == [1500] * 10


def test_a_dead_path_is_asked_ever_more_seldom_and_keeps_its_size() -> None:
    path = Path(1500)
    path.advance(20)
    path.probes.clear()
    path.loss = 1.0
    path.advance(60)
    assert path.search.current == 1500
    assert not path.search.trusted
    assert len(path.probes) < 130
    path.loss = 0.0
    path.advance(11)
    assert_close(path)


def test_a_path_that_shrinks_while_larger_sizes_are_tried_is_noticed() -> None:
    path = Path(1400)
    path.advance(20)
    path.advance(RAISE_TIMER, lambda: not path.settled())
    path.mtu = 1300
    path.advance(5)
    assert_close(path)


def test_a_move_to_another_path_begins_anew() -> None:
    path = Path(1300)
    path.advance(20)
    path.mtu = 1500
    path.search.restart(1500, path.now)
    assert path.search.current == 1500
    assert not path.search.trusted
    path.advance(1)
    assert_close(path)


def test_tokens_that_were_never_sent_say_nothing() -> None:
    path = Path(1280)
    path.loss = 1.0
    for token in (0, 1, 1 << 63, 2**64 - 1):
        path.search.echo(token, path.now)
    path.advance(10)
    assert not path.search.trusted


def test_a_link_that_takes_not_even_the_smallest_size_does_not_spin() -> None:
    path = Path(1500, interface=500)
    path.advance(30)
    assert len(path.probes) < 100


def test_an_echo_of_an_earlier_round_says_nothing_about_this_one() -> None:
    search = PathMtu(1500, smallest=SMALLEST, largest=LARGEST, now=0)
    now = 0.0
    earlier: dict[int, int] = {}
    for _ in range(8):  # more rounds than make a size count as too large
        probes = {size: token for token, size in search.poll(0, 1500, now)}
        if earlier:
            search.echo(earlier[SMALLEST], now)
        earlier, now = probes, search.next_timer()
    assert search.current == 1500, "no round had an answer of its own, small or large"


def test_a_late_echo_overturns_a_verdict() -> None:
    search = PathMtu(1500, smallest=SMALLEST, largest=LARGEST, now=0)
    now = 0.0
    late: dict[int, int] = {}
    while max(probes := {size: token for token, size in search.poll(0, 1500, now)}) >= 1400:
        for size, token in probes.items():
            if size < 1400:
                search.echo(token, now)
        late |= probes
        now = search.next_timer()
    search.echo(late[1420], now)
    while search.searching:
        for token, _ in search.poll(0, 1500, now):
            search.echo(token, now)
        now = search.next_timer()
    assert search.current == 1500
