"""A client and a server end of DTLS, joined with no socket in between."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from dtun.dtls.association import Association
from dtun.dtls.engine import ClientEngine, ServerEngine
from dtun.dtls.listener import Failed, Listener, Path, Verified
from dtun.dtls.suites import DEFAULT_SUITES, Suite

KEY = bytes(range(32))
PATH = Path(1, ("192.0.2.1", 40000), "198.51.100.1")


@dataclass
class Wire:
    """A server's listener, and what was seen to pass between it and its clients."""

    listener: Listener
    replies: list[bytes] = field(default_factory=list)
    events: list[Verified | Failed] = field(default_factory=list)

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


Connect = Callable[..., tuple[Association, Association]]


def _key_of(identity: str, _suite: Suite) -> bytes | None:
    return KEY if identity == "demo" else None


@pytest.fixture
def path() -> Path:
    return PATH


@pytest.fixture
def make_wire() -> Callable[..., Wire]:
    """Makes a server that knows "demo"."""

    def make(suites: Sequence[Suite] = DEFAULT_SUITES, **limits: float) -> Wire:
        return Wire(Listener(ServerEngine(_key_of, suites), **limits))  # type: ignore[arg-type]

    return make


@pytest.fixture
def wire(make_wire: Callable[..., Wire]) -> Wire:
    return make_wire()


@pytest.fixture
def make_client() -> Callable[..., Association]:
    """Starts a client's handshake."""

    def make(
        identity: str = "demo",
        key: bytes = KEY,
        suites: Sequence[Suite] = DEFAULT_SUITES,
        *,
        native: bool = True,
    ) -> Association:
        return ClientEngine(identity, key, suites, native=native).associate(0.0)

    return make


@pytest.fixture
def connect(make_wire: Callable[..., Wire], make_client: Callable[..., Association]) -> Connect:
    """Makes both ends of a session: the client's is settled, the server's still waits for a first record."""

    def make(suite: Suite = DEFAULT_SUITES[0], *, native: bool = True) -> tuple[Association, Association]:
        wire = make_wire((suite,))
        client = make_client(suites=(suite,), native=native)
        wire.exchange(client)
        return client, wire.server_end()

    return make
