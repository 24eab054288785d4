"""When a client makes a session: the table, and what no sequence of events can break. Times in seconds."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from dtun.client.states import (
    ATTEMPTING,
    BACKING_OFF,
    HINT_INTERVAL,
    IN_SERVICE,
    STABLE_TIME,
    TRANSITIONS,
    ClientEvent as E,
    ClientState as S,
    StateMachine,
)
from dtun.pacing import FIRST_WAIT, LONGEST_WAIT, Backoff

REKEY = 3600.0
URGENT = {E.PATH_CHANGED, E.HOST_WOKE, E.CONFIG_CHANGED, E.NETWORK_CHANGED}
PATHS: dict[S, list[E]] = {
    S.NEW: [],
    S.CONNECTING: [E.START],
    S.WAITING: [E.START, E.ATTEMPT_FAILED],
    S.CONNECTED: [E.START, E.SESSION_UP, E.ATTEMPT_SUCCEEDED],
    S.RENEWING: [E.START, E.SESSION_UP, E.ATTEMPT_SUCCEEDED, E.RENEWAL_DUE],
    S.RENEWAL_WAITING: [E.START, E.SESSION_UP, E.ATTEMPT_SUCCEEDED, E.RENEWAL_DUE, E.ATTEMPT_FAILED],
    S.STOPPED: [E.STOP],
}


def state_of(machine: StateMachine) -> S:
    return machine.state


def machine_in(state: S, rekey: float | None = None) -> StateMachine:
    machine = StateMachine(rekey, backoff=Backoff(random.Random(1)), rng=random.Random(2))
    for event in PATHS[state]:
        machine.handle(event, 0)
    assert state_of(machine) is state
    return machine


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("event", E)
def test_each_event_in_each_state(state: S, event: E) -> None:
    machine = machine_in(state)
    starts = machine.handle(event, 0)
    assert state_of(machine) is TRANSITIONS[state].get(event, state)
    assert starts == (state not in ATTEMPTING and machine.state in ATTEMPTING)


def test_the_table_alone_keeps_a_renewal_from_ending_a_session() -> None:
    for state in IN_SERVICE:
        leaving = {event for event, after in TRANSITIONS[state].items() if after not in IN_SERVICE}
        assert leaving == {E.SESSION_LOST, E.STOP}


def test_the_table_alone_keeps_a_client_trying() -> None:
    for state in set(S) - {S.NEW, S.STOPPED}:
        for event, after in TRANSITIONS[state].items():
            assert after in IN_SERVICE | ATTEMPTING | BACKING_OFF or event is E.STOP


@pytest.mark.parametrize("event", sorted(URGENT - {E.NETWORK_CHANGED}, key=str))
@pytest.mark.parametrize("end", [E.ATTEMPT_SUCCEEDED, E.ATTEMPT_FAILED])
def test_what_is_urgent_during_an_attempt_starts_another_right_after_it(event: E, end: E) -> None:
    machine = machine_in(S.RENEWING)
    assert not machine.handle(event, 1)
    assert machine.handle(end, 2)
    assert state_of(machine) is S.RENEWING
    machine.handle(E.ATTEMPT_SUCCEEDED, 3)
    assert state_of(machine) is S.CONNECTED, "one, not two"


@pytest.mark.parametrize("event", [E.RENEWAL_DUE, E.HINT])
def test_a_renewal_that_becomes_due_during_an_attempt_follows_it_if_it_succeeds(event: E) -> None:
    machine = machine_in(S.RENEWING)
    machine.handle(event, 1)
    assert machine.handle(E.ATTEMPT_SUCCEEDED, 2)
    machine.handle(event, 2 + HINT_INTERVAL)
    assert not machine.handle(E.ATTEMPT_FAILED, 9)
    assert state_of(machine) is S.RENEWAL_WAITING


@pytest.mark.parametrize(
    ("events", "after"),
    [([E.ATTEMPT_FAILED], S.CONNECTING), ([E.SESSION_UP, E.ATTEMPT_SUCCEEDED], S.CONNECTED)],
)
def test_a_change_of_the_network_during_the_first_attempt_matters_only_if_that_fails(
    events: list[E], after: S
) -> None:
    machine = machine_in(S.CONNECTING)
    for event in (E.NETWORK_CHANGED, *events):
        machine.handle(event, 1)
    assert state_of(machine) is after


def test_a_session_lost_at_the_end_of_its_attempt_waits_for_the_next_one() -> None:
    machine = machine_in(S.CONNECTING)
    for event in (E.SESSION_UP, E.SESSION_LOST, E.ATTEMPT_SUCCEEDED):
        assert not machine.handle(event, 1)
    assert state_of(machine) is S.WAITING
    assert machine.next_timer() is not None


def test_a_session_is_renewed_when_its_key_is_old() -> None:
    machine = machine_in(S.CONNECTED, REKEY)
    due = machine.rekey_at
    assert due is not None
    assert 0.95 * REKEY <= due <= REKEY
    assert not machine.poll(due - 0.1)
    assert machine.poll(due)
    assert machine.routine
    machine.handle(E.SESSION_UP, due + 1)
    assert machine.rekey_at is not None
    assert machine.rekey_at > due + 1


@pytest.mark.parametrize("never", [None, 0])
def test_or_never(never: float | None) -> None:
    assert machine_in(S.CONNECTED, never).rekey_at is None


def test_the_time_until_then_can_change() -> None:
    machine = machine_in(S.CONNECTED)
    machine.set_rekey(120, 50)
    assert machine.rekey_at is not None
    assert 50 + 0.95 * 120 <= machine.rekey_at <= 170


def test_a_lost_session_is_not_renewed() -> None:
    machine = machine_in(S.CONNECTED, REKEY)
    machine.handle(E.SESSION_LOST, 1)
    machine.set_rekey(60, 1)
    assert machine.rekey_at is None


def test_only_a_renewal_is_routine() -> None:
    machine = machine_in(S.CONNECTED)
    machine.handle(E.RENEWAL_DUE, 0)
    assert machine.routine
    machine.handle(E.HINT, 0)
    assert not machine.routine


def test_hints_are_rate_limited() -> None:
    machine = machine_in(S.CONNECTED)
    assert machine.handle(E.HINT, 100)
    machine.handle(E.ATTEMPT_SUCCEEDED, 100)
    assert not machine.handle(E.HINT, 100 + HINT_INTERVAL - 0.1)
    assert machine.handle(E.HINT, 100 + HINT_INTERVAL)


def waits(machine: StateMachine, now: float, *, stable: bool) -> list[float]:
    """The back-off after each of ten sessions that are lost at once, or that have served for a while before."""
    found = []
    for _ in range(10):
        if stable:
            now += STABLE_TIME
            machine.poll(now)
        machine.handle(E.SESSION_LOST, now)
        due = machine.next_timer()
        assert due is not None
        found.append(due - now)
        now = due
        assert machine.poll(now)
        machine.handle(E.SESSION_UP, now)
        machine.handle(E.ATTEMPT_SUCCEEDED, now)
    return found


def test_sessions_that_are_lost_at_once_come_ever_more_slowly() -> None:
    assert waits(machine_in(S.CONNECTED), 0, stable=False)[-1] >= LONGEST_WAIT / 2


def test_a_session_that_has_served_for_a_while_is_followed_by_a_short_wait() -> None:
    assert max(waits(machine_in(S.CONNECTED), 0, stable=True)) <= FIRST_WAIT


class Checked:
    """A machine whose rules are checked after each event."""

    def __init__(self, rekey: float | None, seed: int) -> None:
        self.machine = StateMachine(rekey, backoff=Backoff(random.Random(seed)), rng=random.Random(seed))
        self.running = False
        self.urgent = False
        self.hints: list[float] = []

    def possible(self) -> list[E]:
        """The events that the caller can have in this state. ATTEMPT_DUE comes from `poll`."""
        found = [E.RENEWAL_DUE, E.HINT, *sorted(URGENT, key=str)]
        if self.machine.state in ATTEMPTING:
            found += [E.ATTEMPT_SUCCEEDED, E.ATTEMPT_FAILED, E.SESSION_UP]
        if self.machine.state in IN_SERVICE:
            found.append(E.SESSION_LOST)
        return found

    def poll(self, now: float) -> None:
        due = self.machine.next_timer()
        if self.machine.poll(now):
            assert due is not None
            assert due <= now
            self.note_start()

    def handle(self, event: E, now: float) -> None:
        before = self.machine.state
        started = self.machine.handle(event, now)
        self.running = self.running and event not in (E.ATTEMPT_SUCCEEDED, E.ATTEMPT_FAILED)
        self.urgent = self.urgent or event in URGENT
        if started:
            if event in (E.ATTEMPT_FAILED, E.SESSION_LOST):
                assert self.urgent, "a back-off comes after a failed attempt and a lost session"
            assert before not in BACKING_OFF or event in URGENT, "nothing else ends a back-off"
            if event is E.HINT:
                self.hints.append(now)
            self.note_start()
        if event is not E.SESSION_LOST:
            assert before not in IN_SERVICE or self.machine.state in IN_SERVICE, (
                "a renewal interrupts nothing"
            )

    def note_start(self) -> None:
        assert not self.running, "one attempt at a time"
        self.running, self.urgent = True, False

    def check(self, now: float) -> None:
        assert self.running == (self.machine.state in ATTEMPTING)
        if not self.running and self.machine.state not in IN_SERVICE:
            due = self.machine.next_timer()
            assert due is not None, "an attempt is pending"
            assert due - now <= LONGEST_WAIT
        assert all(later - earlier >= HINT_INTERVAL for earlier, later in pairwise(self.hints))


STEP = st.tuples(st.integers(0, 100), st.floats(0, 30))


@given(st.lists(STEP, min_size=5), st.sampled_from([None, 60.0]), st.integers())
def test_no_sequence_of_events_breaks_the_rules(
    steps: list[tuple[int, float]], rekey: float | None, seed: int
) -> None:
    checked = Checked(rekey, seed)
    now = 0.0
    checked.handle(E.START, now)
    for choice, pause in steps:
        now += pause
        checked.poll(now)
        events = checked.possible()
        checked.handle(events[choice % len(events)], now)
        checked.check(now)
    machine = checked.machine
    machine.handle(E.STOP, now)
    assert machine.next_timer() is None
    assert not any(machine.handle(event, now) for event in E)


@given(st.sampled_from([S.CONNECTING, S.WAITING]), st.integers())
def test_an_attempt_is_always_made_again(state: S, seed: int) -> None:
    """However long the servers stay away."""
    machine = StateMachine(REKEY, backoff=Backoff(random.Random(seed)))
    for event in PATHS[state]:
        machine.handle(event, 0)
    now, attempts = 0.0, 0
    while attempts < 20:
        if machine.state in ATTEMPTING:
            attempts += 1
            machine.handle(E.ATTEMPT_FAILED, now)
        due = machine.next_timer()
        assert due is not None
        assert 0 < due - now <= LONGEST_WAIT
        now = due
        assert machine.poll(now)
