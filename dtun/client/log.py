"""The client's log lines about its sessions."""

import logging

from dtun.config import ClientConfig
from dtun.pacing import RateLimiter
from dtun.protocol.messages import Welcome
from dtun.session.link import Link
from dtun.session.log import SessionLog
from dtun.session.session import Closed
from dtun.text import duration, printable

FIRST_REMINDER, REMINDER = 60.0, 300.0
"""Seconds after the first line with one reason until the second one, and between two of the further ones."""


class ClientLog(SessionLog):
    """A SessionLog with a method for each line about a session."""

    def __init__(self, config: ClientConfig, limiter: RateLimiter | None = None) -> None:
        super().__init__(logging.getLogger("dtun.client"), client=config.id, limiter=limiter)
        self._config = config
        self._failure = ""
        self._remind_at = 0.0

    def connected(self, link: Link, welcome: Welcome, device: str, mtu: int) -> None:
        """A session is in service, and a user should know. `mtu` in bytes."""
        self._recovered()
        suite = link.session.association.suite
        self.info(
            "connected to %s as %s: %s to %s on %s, MTU %d, %s",
            link.endpoint,
            self._config.id,
            welcome.address,
            welcome.peer,
            device,
            mtu,
            suite.label if suite else "",
            reason="connected",
            peer=link.endpoint,
        )
        for warning in link.warnings:
            self.warning("%s", warning, reason="connected", peer=link.endpoint)
        for refusal in welcome.refused:
            reason = printable(refusal.reason)
            self.warning(
                "the server refuses subnet %s: %s",
                refusal.subnet,
                reason,
                reason="refused",
                peer=link.endpoint,
            )

    def renewed(self, link: Link) -> None:
        """A new session has replaced the one in service, and nothing else has changed."""
        self._recovered()
        self.debug("renewed the session with %s", link.endpoint, reason="renewed", peer=link.endpoint)

    def moved(self, before: Link, link: Link) -> None:
        """The new session is with another server, or with another address of the same."""
        text = "moved from %s to %s"
        self.info(text, before.endpoint, link.endpoint, reason="moved", peer=link.endpoint)

    def resumed(self, link: Link) -> None:
        """The session that the process before this one saved is in service."""
        text = "resumed the session with %s after the restart"
        self.info(text, link.endpoint, reason="resumed", peer=link.endpoint)

    def disconnected(self, link: Link, closed: Closed) -> None:
        """The session in service has ended."""
        text = printable(closed.text)
        if closed.reason == "replaced":
            self.error(
                "another host uses the id %s: %s",
                self._config.id,
                text,
                reason=closed.reason,
                peer=link.endpoint,
            )
        else:
            self.warning("disconnected: %s", text, reason=closed.reason, peer=link.endpoint)

    def failed(self, reason: str, waited: float | None, now: float) -> None:
        """An attempt has failed: a new reason is logged at once, the same one now and then.

        `waited`: seconds without a session; None if there is one, which the attempt was to renew.
        """
        if reason != self._failure:
            self._failure, self._remind_at = reason, now + FIRST_REMINDER
            kind = "no session" if waited is not None else "no new session"
        elif now >= self._remind_at:
            self._remind_at = now + REMINDER
            kind = f"no session for {duration(waited)}" if waited is not None else "still no new session"
        else:
            return
        self.warning("%s: %s", kind, reason, reason="no session")

    def _recovered(self) -> None:
        """The next failure is news again."""
        self._failure = ""
