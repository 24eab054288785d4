"""Makes associations: one engine for a client's identity, one for a server.

Mbed TLS is imported when the first engine is made, not before: commands without handshakes start faster.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from dtun.dtls.association import Association
from dtun.dtls.status import IDENTITY_MAX, KEY_MAX, is_identity, is_key
from dtun.dtls.suites import DEFAULT_SUITES, Suite
from dtun.errors import ConfigError

if TYPE_CHECKING:
    from dtun.dtls.mbed import MbedBuffer

# Seconds: the first wait before a flight is sent again, and the longest; it doubles in between. The first is shorter
# than the 1 s of RFC 6347, section 4.2.4.1, because a lost packet should not delay a reconnect by a second.
RETRANSMIT: Final = (0.3, 5.0)


class ClientEngine:
    """Makes associations with servers, as one identity."""

    def __init__(
        self,
        identity: str,
        key: bytes,
        suites: Sequence[Suite] = DEFAULT_SUITES,
        *,
        native: bool,
        retransmit: tuple[float, float] = RETRANSMIT,
    ) -> None:
        """`retransmit`: see RETRANSMIT.

        Raises:
            ConfigError: the identity or the key cannot work. The message does not contain the key.
        """
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
        association = Association(self._new(), now, identity=self._identity, server=False)
        association.poll(now)
        return association


class ServerEngine:
    """Makes the server's connections, for the listener. A cookie of one is valid for all."""

    def __init__(
        self, suites: Sequence[Suite] = DEFAULT_SUITES, *, retransmit: tuple[float, float] = RETRANSMIT
    ) -> None:
        from dtun.dtls import mbed  # noqa: PLC0415 - see above

        self.cheap_curves = mbed.CHEAP_CURVES
        self._new = mbed.server_factory(suites, retransmit=retransmit)

    def new_buffer(self) -> "MbedBuffer":
        """A connection that waits for a ClientHello."""
        return self._new()
