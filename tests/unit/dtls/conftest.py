"""What tests of both ends of DTLS begin with."""

from collections.abc import Callable, Sequence

import pytest

from dtun.config import Key
from dtun.dtls.association import Association
from dtun.dtls.engine import ClientEngine, ServerEngine
from dtun.dtls.listener import Listener, Path
from dtun.dtls.suites import DEFAULT_SUITES, Suite
from tests.unit.dtls.wire import KEY, PATH, Wire

Connect = Callable[..., tuple[Association, Association]]


def _key_of(_path: Path, identity: str, _suite: Suite) -> Key | None:
    return Key(KEY) if identity == "demo" else None


@pytest.fixture
def path() -> Path:
    return PATH


@pytest.fixture
def make_wire() -> Callable[..., Wire]:
    """Makes a server that knows "demo"."""

    def make(suites: Sequence[Suite] = DEFAULT_SUITES, **limits: float) -> Wire:
        return Wire(Listener(ServerEngine(suites), _key_of, **limits))  # type: ignore[arg-type]

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
    """Makes both ends of a session: the client's keys are taken over, the server still waits for a first record."""

    def make(suite: Suite = DEFAULT_SUITES[0], *, native: bool = True) -> tuple[Association, Association]:
        wire = make_wire((suite,))
        client = make_client(suites=(suite,), native=native)
        wire.exchange(client)
        return client, wire.server_end()

    return make
