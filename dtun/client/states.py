"""When the client makes a session. Pure: events and `now` go in, "start an attempt" comes out.

A client always wants one session. An attempt to make one tries all addresses of all servers; it runs beside the session
in service, if there is one, and replaces it only when the new session works. So two things make a state:

                              no attempt        attempt is running    back-off, then an attempt
    no session                NEW, STOPPED      CONNECTING            WAITING
    a session is in service   CONNECTED         RENEWING              RENEWAL_WAITING

Rules, each of which can be read in the table below:

1. From START to STOP, without a session an attempt is running or waits for its time.
2. Only SESSION_LOST and STOP end the session in service. A renewal never does.
3. A failed attempt and a lost session lead to a back-off. Only what makes success likely ends it early: a change of the
   host's network or of the configuration, or a wake-up.

What the table cannot say is in `StateMachine`: requests during an attempt are postponed to its end, hints are rate
limited, and timers become events.
"""

import random
from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from dtun.pacing import Backoff

STABLE_TIME = 10.0
"""Seconds after which a session counts as a success, so that the next failure starts with a short wait."""

HINT_INTERVAL = 5.0
"""Seconds, at least, between two attempts that are due to hints: packets that anybody could have forged."""


class ClientState(Enum):
    """See the table in the module's docstring."""

    NEW = auto()
    CONNECTING = auto()
    WAITING = auto()
    CONNECTED = auto()
    RENEWING = auto()
    RENEWAL_WAITING = auto()
    STOPPED = auto()


class ClientEvent(Enum):
    """What happens to a client."""

    START = auto()
    STOP = auto()

    SESSION_UP = auto()
    """A session is in service; one that was in service before is replaced."""
    SESSION_LOST = auto()
    """The session in service has ended."""

    ATTEMPT_SUCCEEDED = auto()
    """The attempt is over. SESSION_UP came before it."""
    ATTEMPT_FAILED = auto()
    """The attempt is over: no server welcomed the client."""
    ATTEMPT_DUE = auto()
    """The back-off is over."""

    RENEWAL_DUE = auto()
    """The key is old or worn out, or the server asks for a new session."""
    HINT = auto()
    """An unauthenticated packet says that the session in service is gone."""

    NETWORK_CHANGED = auto()
    """The host's network has changed, and there is no session."""
    PATH_CHANGED = auto()
    """The host reaches the server of the session in service another way."""
    HOST_WOKE = auto()
    """The host has slept; the server may have ended the session long ago."""
    CONFIG_CHANGED = auto()
    """The server has to know of a new configuration."""


TRANSITIONS: Final[Mapping[ClientState, Mapping[ClientEvent, ClientState]]] = {
    ClientState.NEW: {
        ClientEvent.START: ClientState.CONNECTING,
        ClientEvent.SESSION_UP: ClientState.CONNECTED,  # resumed after a restart
        ClientEvent.STOP: ClientState.STOPPED,
    },
    ClientState.CONNECTING: {
        ClientEvent.SESSION_UP: ClientState.RENEWING,
        ClientEvent.ATTEMPT_SUCCEEDED: ClientState.WAITING,  # its session was lost at once
        ClientEvent.ATTEMPT_FAILED: ClientState.WAITING,
        ClientEvent.STOP: ClientState.STOPPED,
    },
    ClientState.WAITING: {
        ClientEvent.SESSION_UP: ClientState.CONNECTED,
        ClientEvent.ATTEMPT_DUE: ClientState.CONNECTING,
        ClientEvent.NETWORK_CHANGED: ClientState.CONNECTING,
        ClientEvent.PATH_CHANGED: ClientState.CONNECTING,
        ClientEvent.HOST_WOKE: ClientState.CONNECTING,
        ClientEvent.CONFIG_CHANGED: ClientState.CONNECTING,
        ClientEvent.STOP: ClientState.STOPPED,
    },
    ClientState.CONNECTED: {
        ClientEvent.SESSION_LOST: ClientState.WAITING,
        ClientEvent.RENEWAL_DUE: ClientState.RENEWING,
        ClientEvent.HINT: ClientState.RENEWING,
        ClientEvent.PATH_CHANGED: ClientState.RENEWING,
        ClientEvent.HOST_WOKE: ClientState.RENEWING,
        ClientEvent.CONFIG_CHANGED: ClientState.RENEWING,
        ClientEvent.STOP: ClientState.STOPPED,
    },
    ClientState.RENEWING: {
        ClientEvent.SESSION_LOST: ClientState.CONNECTING,
        ClientEvent.ATTEMPT_SUCCEEDED: ClientState.CONNECTED,
        ClientEvent.ATTEMPT_FAILED: ClientState.RENEWAL_WAITING,
        ClientEvent.STOP: ClientState.STOPPED,
    },
    ClientState.RENEWAL_WAITING: {
        ClientEvent.SESSION_LOST: ClientState.WAITING,
        ClientEvent.ATTEMPT_DUE: ClientState.RENEWING,
        ClientEvent.PATH_CHANGED: ClientState.RENEWING,
        ClientEvent.HOST_WOKE: ClientState.RENEWING,
        ClientEvent.CONFIG_CHANGED: ClientState.RENEWING,
        ClientEvent.STOP: ClientState.STOPPED,
    },
    ClientState.STOPPED: {},
}
"""An event that is not listed changes nothing."""

IN_SERVICE: Final = frozenset({ClientState.CONNECTED, ClientState.RENEWING, ClientState.RENEWAL_WAITING})
ATTEMPTING: Final = frozenset({ClientState.CONNECTING, ClientState.RENEWING})
BACKING_OFF: Final = frozenset({ClientState.WAITING, ClientState.RENEWAL_WAITING})

REQUESTS: Final = frozenset(
    {
        ClientEvent.RENEWAL_DUE,
        ClientEvent.HINT,
        ClientEvent.NETWORK_CHANGED,
        ClientEvent.PATH_CHANGED,
        ClientEvent.HOST_WOKE,
        ClientEvent.CONFIG_CHANGED,
    }
)
"""Events that ask for an attempt. One that comes during an attempt is handled again at its end."""


class StateMachine:
    """The state of one client. `handle` takes what happens, `poll` what time brings; times are in seconds.

    Both return True if an attempt is to be started now; the caller answers with ATTEMPT_SUCCEEDED or ATTEMPT_FAILED.
    """

    def __init__(
        self, rekey: float | None, *, backoff: Backoff | None = None, rng: random.Random | None = None
    ) -> None:
        """`rekey` is the time after which a session is renewed (at most 5 % earlier); None or 0 is never."""
        self._rekey = rekey
        self._backoff = backoff or Backoff()
        self._random = rng or random.Random()  # noqa: S311 - spreads load, hides nothing
        self._state = ClientState.NEW
        self._postponed: set[ClientEvent] = set()
        self._latest_request = ClientEvent.START
        self._hint_allowed_at = float("-inf")
        self._attempt_at: float | None = None
        self._stable_at: float | None = None
        self._rekey_at: float | None = None

    @property
    def state(self) -> ClientState:
        return self._state

    @property
    def rekey_at(self) -> float | None:
        """When the session in service is renewed because its key is old; None once that has begun."""
        return self._rekey_at

    @property
    def routine(self) -> bool:
        """Whether the latest request was for a renewal, which is not worth a log line."""
        return self._latest_request is ClientEvent.RENEWAL_DUE

    def handle(self, event: ClientEvent, now: float) -> bool:
        """Take an event."""
        if event is ClientEvent.HINT:
            if now < self._hint_allowed_at:
                return False
            self._hint_allowed_at = now + HINT_INTERVAL
        attempting = self._state in ATTEMPTING
        if event in REQUESTS:
            self._latest_request = event
            if attempting:
                self._postponed.add(event)
        start = self._move(event, now)
        if attempting and self._state not in ATTEMPTING:
            # The first of them that starts an attempt serves them all.
            postponed, self._postponed = self._postponed, set()
            for request in postponed:
                start |= self._move(request, now)
        return start

    def poll(self, now: float) -> bool:
        """Handle the timers that are due."""
        start = False
        if self._stable_at is not None and now >= self._stable_at:
            self._stable_at = None
            self._backoff.reset()
        if self._rekey_at is not None and now >= self._rekey_at:
            self._rekey_at = None
            start |= self.handle(ClientEvent.RENEWAL_DUE, now)
        if self._attempt_at is not None and now >= self._attempt_at:
            start |= self.handle(ClientEvent.ATTEMPT_DUE, now)
        return start

    def next_timer(self) -> float | None:
        """When to `poll` next."""
        timers = (self._attempt_at, self._stable_at, self._rekey_at)
        return min((timer for timer in timers if timer is not None), default=None)

    def set_rekey(self, rekey: float | None, now: float) -> None:
        """Renew sessions after this time from now on. For the session in service, the time starts again from now."""
        self._rekey = rekey
        if self._state in IN_SERVICE:
            self._schedule_rekey(now)

    def _move(self, event: ClientEvent, now: float) -> bool:
        """Go to the next state and set its timers; returns whether an attempt starts."""
        before, self._state = self._state, TRANSITIONS[self._state].get(event, self._state)
        if self._state not in IN_SERVICE:
            self._stable_at = self._rekey_at = None
        elif event is ClientEvent.SESSION_UP:
            self._stable_at = now + STABLE_TIME
            self._schedule_rekey(now)
        if self._state not in BACKING_OFF:
            self._attempt_at = None
        elif before not in BACKING_OFF:
            self._attempt_at = now + self._backoff.next()
        return self._state in ATTEMPTING and before not in ATTEMPTING

    def _schedule_rekey(self, now: float) -> None:
        self._rekey_at = now + self._rekey * self._random.uniform(0.95, 1) if self._rekey else None
