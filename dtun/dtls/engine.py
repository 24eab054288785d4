"""How associations come into being: one engine for a client's identity, one for a server's keys.

Mbed TLS is imported when the first engine is made, not before: commands that never shake hands start faster.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from dtun.dtls.association import Association
from dtun.dtls.status import IDENTITY_MAX, KEY_MAX, is_identity, is_key
from dtun.dtls.suites import DEFAULT_SUITES, Suite
from dtun.errors import ConfigError

if TYPE_CHECKING:
    from dtun.dtls.mbed import MbedBuffer

# Seconds: first wait before a flight is sent again, and the longest; it doubles in between. The first is shorter
# than the 1 s of RFC 6347, section 4.2.4.1, because a lost packet should not cost a second of a reconnect.
RETRANSMIT: Final = (0.3, 5.0)


class ClientEngine:
    """Makes associations with servers, as one identity.

    ConfigError when the identity or the key cannot work; the message does not hold the key.
    """

    def __init__(
        self,
        identity: str,
        key: bytes,
        suites: Sequence[Suite] = DEFAULT_SUITES,
        *,
        native: bool,
        retransmit: tuple[float, float] = RETRANSMIT,
    ) -> None:
        from dtun.dtls import mbed  # noqa: PLC0415 - see above

        if not is_identity(identity):
            raise ConfigError(f"an id has 1 to {IDENTITY_MAX} printable bytes, which {identity!r} has not")
        if not is_key(key):
            raise ConfigError(f"a key has 1 to {KEY_MAX} bytes, not {len(key)}: make one with `dtun genkey`")
        self._identity = identity
        self._new = mbed.client_factory(identity, key, suites, native=native, retransmit=retransmit)

    def __repr__(self) -> str:
        return f"ClientEngine({self._identity!r})"

    def associate(self, now: float) -> Association:
        """Start a handshake; its ClientHello is ready in `take_outgoing()`."""
        association = Association(self._new(), identity=self._identity, server=False)
        association.poll(now)
        return association


class ServerEngine:
    """Makes the server's ends of handshakes, for the listener.

    `lookup(identity, suite)` returns the key (1 to 32 bytes), or None when the identity is not known or may not
    use that suite. From outside that looks the same as a wrong key.
    """

    def __init__(
        self,
        lookup: Callable[[str, Suite], bytes | None],
        suites: Sequence[Suite] = DEFAULT_SUITES,
        *,
        retransmit: tuple[float, float] = RETRANSMIT,
    ) -> None:
        from dtun.dtls import mbed  # noqa: PLC0415 - see above

        self._new = mbed.server_factory(lookup, suites, retransmit=retransmit)

    def new_buffer(self) -> "MbedBuffer":
        """A connection that waits for a ClientHello."""
        return self._new()
