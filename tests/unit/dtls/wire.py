"""A client and a server end of DTLS, joined with no socket in between."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

from dtun.config import Key
from dtun.dtls import key_takeover
from dtun.dtls.association import Association
from dtun.dtls.listener import Failed, Listener, Path, Verified
from dtun.dtls.status import ExportError

KEY = bytes(range(32))
PATH = Path(1, ("192.0.2.1", 40000), "198.51.100.1")


@dataclass
class Wire:
    """A server's listener, and what was seen to pass between it and its clients."""

    listener: Listener[Key]
    replies: list[bytes] = field(default_factory=list)
    events: list[Verified[Key] | Failed[Key]] = field(default_factory=list)

    def exchange(self, client: Association, path: Path = PATH) -> None:
        """Carry datagrams to and fro over a perfect network until both ends are silent."""
        while datagrams := client.take_outgoing():
            for datagram in datagrams:
                assert len(datagram) <= 1200
                self.listener.receive(datagram, path, 0.0)
            for reply, to in self.listener.take_outgoing():
                assert to == path
                assert len(reply) <= 1200
                self.replies.append(reply)
                client.receive(reply, 0.0)
            self.events += self.listener.take_events()

    def server_end(self) -> Association:
        """The server's end of the handshake that was the last to succeed."""
        event = self.events[-1]
        assert isinstance(event, Verified)
        return event.association


@contextmanager
def staying_in_mbed_tls() -> Iterator[None]:
    """Sessions whose keys would be taken over meanwhile stay inside Mbed TLS."""
    turned_off = ExportError("turned off")
    with mock.patch.object(key_takeover, "read_keys", side_effect=turned_off):
        yield
