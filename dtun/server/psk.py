"""The keys of the server's handshakes: which key is tried with whom, and what is logged about failed handshakes."""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dtun.config import ANY_ID, ClientEntry, Key, ServerConfig
from dtun.dtls.engine import ServerEngine
from dtun.dtls.listener import Failed, Listener, Path, Verified
from dtun.dtls.suites import LEGACY_SUITE, Suite, by_name
from dtun.pacing import RateLimiter
from dtun.server.config_diff import keys_of
from dtun.server.identities import Identities
from dtun.session import udp
from dtun.session.log import SessionLog
from dtun.session.status import Failure
from dtun.text import printable

MAX_FAILURES = 1024
"""Addresses with a failure that are remembered."""

MAX_NAMES = 4096
"""Ids for which the key that worked last is remembered."""

MEMORY = 600.0
"""Seconds for which a failure counts."""

INCONCLUSIVE = 2
"""Failures in a row from one address that tell nothing about the client's key any more."""

log = logging.getLogger("dtun.server")


class Authenticator:
    """Finds the keys for a listener, by the configuration that holds now, and learns from each handshake."""

    def __init__(self, identities: Identities, loop: asyncio.AbstractEventLoop) -> None:
        self._identities = identities
        self._loop = loop
        self._chooser = KeyChooser()
        self._last_failure: Failure | None = None
        limiter = RateLimiter(burst=10, per_seconds=60)
        self._failures = SessionLog(log, limiter=limiter, clock=loop.time)
        self._suites = _suites_of(identities.config)
        engine = ServerEngine(self._suites)
        if not engine.cheap_curves:
            log.warning(
                "cannot limit the curves of this build of Mbed TLS; fewer handshakes are allowed in a second"
            )
        self.listener = Listener(engine, self._find_key)

    @property
    def last_failure(self) -> Failure | None:
        """The latest handshake that failed with an id that no client has."""
        return self._last_failure

    def reconfigure(self) -> None:
        """Offer the suites of the configuration that holds now."""
        suites = _suites_of(self._identities.config)
        if suites != self._suites:
            self._suites = suites
            self.listener.use(ServerEngine(suites))

    def succeeded(self, verified: Verified[Key]) -> None:
        name = verified.association.identity
        if name is not None and self._has_two_keys(name):
            self._chooser.worked(name, verified.path.source, verified.key)

    def failed(self, failed: Failed[Key]) -> None:
        """Learn from a failed handshake, and log it, unless only the wrong one of two keys was tried."""
        name, key = failed.identity, failed.key
        if name is None:
            return
        if key is not None and failed.reason == "wrong key" and self._has_two_keys(name):
            count = self._chooser.failed(name, failed.path.source, key, self._loop.time())
            if count < INCONCLUSIVE:
                log.debug("%s: the client uses its other key, which is tried next", printable(name))
                return
        reason, peer = failed.reason, udp.show(failed.path.peer)
        cause = self._mismatch(name) if reason == "unknown id" else ""
        identity = self._identities.by_name.get(name)
        if identity is not None:
            identity.failed(f"a handshake from {peer} failed: {cause or reason}")
        else:
            self._last_failure = Failure(
                f"a handshake from {peer} with id '{printable(name)}' failed: {reason}"
            )
        name = printable(name)
        text = "%s: a handshake with id '%s' failed: %s"
        self._failures.warning(text, peer, name, cause or reason, client=name, reason=reason, peer=peer)

    def _find_key(self, path: Path, name: str, suite: Suite) -> Key | None:
        entry = self._identities.config.entry(name)
        keys = usable_keys(entry, suite) if entry is not None and name != ANY_ID else ()
        return self._chooser.choose(name, path.source, keys, self._loop.time()) if keys else None

    def _has_two_keys(self, name: str) -> bool:
        entry = self._identities.config.entry(name)
        return entry is not None and entry.next_psk is not None

    def _mismatch(self, name: str) -> str:
        """For the log: whether this id is unknown only for the suite that was used."""
        entry = self._identities.config.entry(name)
        if entry is None:
            return ""
        if entry.go:
            return "its entry is for an original Go dtun; remove `compat: go` there, or set it on the client"
        return "it is an original Go dtun, which its entry does not allow; set `compat: go` there"


class KeyChooser:
    """Chooses one of two keys while a client's key is being changed, and learns from the result. Pure.

    A client tells its id, not which key it means, and the server learns only from the client's Finished whether it
    took the right one (RFC 4279, section 2; RFC 5246, section 7.4.9). So it guesses: the key that worked last for this
    id. Where that fails, the next handshake of this id from the same address gets the other one.

    Anybody who knows an id can cause failures. They count only for the address that they come from. Where they go on,
    or are too many to be remembered, a coin decides: an attacker cannot predict the key, and the client is let in
    after two tries on average.

    `toss` is a fair coin. `source` is what an address counts as (`Path.source`), `now` is in seconds.
    """

    def __init__(self, toss: Callable[[], bool] = lambda: bool(secrets.randbits(1))) -> None:
        self._toss = toss
        self._failures: OrderedDict[tuple[str, str], _Failure] = OrderedDict()  # the oldest first
        self._worked: OrderedDict[str, Key] = OrderedDict()

    def choose(self, name: str, source: str, keys: Sequence[Key], now: float) -> Key:
        """The key to try with this id at this address; `keys` are one or two."""
        first, last = keys[0], keys[-1]
        if first is last:
            return first
        self._expire(now)
        failure = self._failures.get((name, source))
        if failure is not None and failure.key in keys:
            if failure.count < INCONCLUSIVE:
                return last if failure.key == first else first
            return first if self._toss() else last
        if len(self._failures) >= MAX_FAILURES:
            return first if self._toss() else last
        worked = self._worked.get(name)
        return last if worked == last else first

    def worked(self, name: str, source: str, key: Key) -> None:
        """The client with this id at this address has proven this key."""
        self._failures.pop((name, source), None)
        self._worked[name] = key
        self._worked.move_to_end(name)
        if len(self._worked) > MAX_NAMES:
            self._worked.popitem(last=False)

    def failed(self, name: str, source: str, key: Key, now: float) -> int:
        """A client with this id did not have this key. Returns how often in a row."""
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


@dataclass(frozen=True, slots=True)
class _Failure:
    key: Key
    count: int
    at: float


def usable_keys(entry: ClientEntry, suite: Suite | None) -> tuple[Key, ...]:
    """The keys with which a client may use this suite. That of the original Go dtun is for Go clients only."""
    return keys_of(entry) if entry.go == (suite is LEGACY_SUITE) else ()


def _suites_of(config: ServerConfig) -> list[Suite]:
    """What the server offers: as configured, and the suite of the original if any client may use that."""
    suites = [by_name(name) for name in config.suites]
    if any(entry.go for entry in config.clients.values()):
        suites.append(LEGACY_SUITE)
    return suites
