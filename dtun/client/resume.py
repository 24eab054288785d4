"""The session that the process before this one saved: whether and how the client resumes it."""

import hashlib
import socket
from dataclasses import dataclass

from dtun.config import ClientConfig
from dtun.handover.saved_session import SavedSession
from dtun.handover.session_store import SessionStore
from dtun.protocol.messages import Welcome
from dtun.session.dialect import NativeDialect
from dtun.session.session import Session


@dataclass(frozen=True, slots=True)
class ResumableSession:
    """A saved session with its socket, and what the server said in it."""

    saved: SavedSession
    sock: socket.socket
    welcome: Welcome

    def session(self, now: float) -> Session:
        """The session, at the point where the process before this one left it."""
        welcome, ledger = self.welcome, self.saved.message_ledger
        return Session.resumed(
            self.saved.association(),
            lambda _, count, at: NativeDialect(count, welcome.keepalive, welcome.timeout, at, ledger),
            now,
        )


def take_session(store: SessionStore, config: ClientConfig) -> ResumableSession | None:
    """Take the saved session from the store. None if there is none, or if it was made for another configuration."""
    taken = store.take_session()
    if taken is None:
        return None
    saved, sock = taken
    greeting = saved.description.greeting
    if isinstance(greeting, Welcome) and saved.description.notes == notes(config):
        return ResumableSession(saved, sock, greeting)
    # Without a goodbye: the server replaces the session when the new one comes.
    store.discard(saved)
    sock.close()
    return None


def notes(config: ClientConfig) -> dict[str, str]:
    """What is saved with a session: a digest of the settings that must be the same for it to be resumed."""
    told = f"{config.id} {config.subnets} {config.mtu} {config.servers} {config.routing} {config.mark}"
    return {"told": hashlib.sha256(told.encode() + config.psk.secret()).hexdigest()}
