"""Handshakes at a server: with which key, and what is said of those that come to nothing."""

import asyncio
import logging

from dtun.config import ANY_ID, Key, ServerConfig
from dtun.dtls.engine import ServerEngine
from dtun.dtls.listener import Failed, Listener, Verified
from dtun.dtls.suites import LEGACY_SUITE, Suite, by_name
from dtun.pacing import RateLimiter
from dtun.server.config_diff import keys_of
from dtun.server.identities import Identities
from dtun.server.keyring import PUZZLING, Keyring
from dtun.session import udp
from dtun.session.log import about, remark
from dtun.text import printable

log = logging.getLogger("dtun.server")


class Handshakes:
    """The keys behind a listener, by the configuration that holds now."""

    def __init__(self, identities: Identities, loop: asyncio.AbstractEventLoop) -> None:
        self._identities = identities
        self._loop = loop
        self._keyring = Keyring()
        self._failures = RateLimiter(burst=10, per_seconds=60)
        self._suites = suites_of(identities.config)
        self.listener = Listener(ServerEngine(self._key, self._suites))

    def use_configured_suites(self) -> None:
        """Offer the suites that the configuration wants now."""
        suites = suites_of(self._identities.config)
        if suites != self._suites:
            self._suites = suites
            self.listener.use(ServerEngine(self._key, suites))

    def succeeded(self, verified: Verified) -> Key | None:
        """The key that this client has proven."""
        name, key = verified.association.identity, verified.note
        if name is None or not isinstance(key, Key):
            return None
        if self._has_two_keys(name):
            self._keyring.worked(name, verified.path.source, key)
        return key

    def failed(self, failed: Failed) -> None:
        """Learn from a handshake that came to nothing, and tell the log."""
        name, now = failed.identity, self._loop.time()
        if name is None:
            return
        if isinstance(failed.note, Key) and failed.reason == "wrong key" and self._has_two_keys(name):
            source = failed.path.source
            if self._keyring.failed(name, source, failed.note, now) < PUZZLING:
                log.debug("%s: not this one of its two keys, the other comes next", printable(name))
                return
        reason = self._mismatch(name, failed.reason) or failed.reason
        what = f"a handshake with id '{printable(name)}' failed"
        peer = udp.show(failed.path.peer)
        extra = about(client=printable(name), reason=failed.reason, peer=peer)
        remark(self._failures, logging.WARNING, f"{peer}: {what}: {reason}", now, extra)

    def _key(self, name: str, suite: Suite) -> bytes | None:
        """The key of this id, if it may use this suite; the suite of the original is for its clients alone."""
        entry = self._identities.config.entry(name)
        handshake = self.listener.serving
        if handshake is None or name == ANY_ID or entry is None or entry.go != (suite is LEGACY_SUITE):
            return None
        key = self._keyring.choose(name, handshake.source, keys_of(entry), self._loop.time())
        handshake.note = key
        return key.secret()

    def _has_two_keys(self, name: str) -> bool:
        entry = self._identities.config.entry(name)
        return entry is not None and entry.next_psk is not None

    def _mismatch(self, name: str, reason: str) -> str | None:
        """In words for the log, if this id is only unknown for the suite that was used, see `_key`."""
        entry = self._identities.config.entry(name)
        if entry is None or reason != "unknown id":
            return None
        if entry.go:
            return "its entry is for an original Go dtun; remove `compat: go` there, or set it on the client"
        return "it is an original Go dtun, which its entry does not allow; set `compat: go` there"


def suites_of(config: ServerConfig) -> list[Suite]:
    """What the server offers: as configured, and the one of the original if any client may use that."""
    suites = [by_name(name) for name in config.suites]
    if any(entry.go for entry in config.clients.values()):
        suites.append(LEGACY_SUITE)
    return suites
