"""One connection inside Mbed TLS. It takes and gives datagrams, and no datagram makes it raise.

The only module that imports mbedtls, so that another engine could replace it; the import takes about 0.1 s. It takes
these properties of python-mbedtls into account:

- `do_handshake()` makes one step, and `WantWriteError` means that there is output. Only the private attribute
  `_handshake_state` tells when the handshake is over: nothing public does before application data has arrived.
- Output may appear on any call, reading included (a lost flight is resent), so it is collected after each call.
- After any error but the "want" ones the buffer has been reset and must not be used again.
- The PSK look-up is called from C in the middle of a step. It is the only place that tells the client's identity, and
  an exception there would be swallowed and look like an unknown identity.
- A state is restored into an object whose `__init__` was not called: `__setstate__` calls it, and what an earlier call
  allocated (33 KiB) would never be freed.
- A state that Mbed TLS refuses would crash the process, see `_Copy`; a state with an ALPN name is often refused, see
  `MbedBuffer.export`.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Self

from mbedtls import _tls, cipher, tls, version
from mbedtls.exceptions import TLSError

from dtun.dtls.curves import limit_curves
from dtun.dtls.status import HANDSHAKE_MTU, KEY_MAX, ExportError, Failure, Status, is_identity, is_key
from dtun.dtls.suites import Suite, by_code, by_name
from dtun.protocol.record import MAX_PLAINTEXT, server_hello_suite, split

ALPN: Final = "dtun/1"
# The end of a state with an agreed ALPN name: length and name.
_ALPN_FIELD: Final = bytes([len(ALPN)]) + ALPN.encode()
_NO_ALPN_FIELD: Final = bytes(1)

_OUTPUT_MAX: Final = 1 << 15
# A full record of the suite with the largest overhead. Any more would stay in the buffer, before the next datagram.
_INPUT_MAX: Final = MAX_PLAINTEXT + 37
_MAC_FAILED: Final = 0x7180
_NO_COMMON_SUITE: Final = 0x7380
_FATAL_ALERT: Final = 0x7780
_CLOSE_NOTIFY: Final = 0x7880
_TIMEOUT: Final = 0x6800

# Mbed TLS detects AES instructions at the first AES operation, which is not safe in two threads at once
# (CVE-2025-52496). So the first operation is here, under the import lock.
cipher.AES.new(bytes(16), cipher.MODE_ECB, b"").encrypt(bytes(16))

CHEAP_CURVES: Final = version.version_info[:2] == (2, 28) and limit_curves(_tls.__file__)
"""Whether handshakes use X25519 or P-256 only. Otherwise one may cost a server 20 times as much."""


_FAILURES: Final = {
    _CLOSE_NOTIFY: Failure.CLOSED,
    _MAC_FAILED: Failure.BAD_MAC,
    _NO_COMMON_SUITE: Failure.NO_COMMON_SUITE,
    _FATAL_ALERT: Failure.ALERT,
    _TIMEOUT: Failure.TIMEOUT,
}

KeyLookup = Callable[[str, Suite], bytes | None]


class _Copy(tls.TLSWrappedBuffer):  # type: ignore[misc]  # mypy does not look into mbedtls
    """The object of a connection that is restored from a state.

    If Mbed TLS refuses a state, it frees the connection; python-mbedtls then resets it, which reads through a null
    pointer: SIGSEGV. So this object is never reset; after an error it is discarded anyway.
    """

    def _reset(self) -> None:
        pass


class MbedBuffer:
    """One DTLS connection inside Mbed TLS, around an object of python-mbedtls."""

    def __init__(self, buffer: Any, store: "KeyStore | None" = None) -> None:
        self._store = store
        self._buffer = buffer
        self._buffer.setmtu(HANDSHAKE_MTU)
        self._output: list[bytes] = []
        self._chosen: Suite | None = None
        self.identity: str | None = None
        self.known = False  # the server has a key for the identity
        self.failure = Failure.NONE
        self._find_key: KeyLookup | None = None

    def use_keys(self, find_key: KeyLookup) -> None:
        """Look up the client's key there, in `handshake`; without it, a server accepts no key."""
        self._find_key = find_key

    def find_key(self, identity: str) -> bytes | None:
        """The key of the client, which has given this identity. For KeyStore."""
        if self._find_key is None or self._chosen is None:
            return None
        self.identity = identity
        key = self._find_key(identity, self._chosen)
        self.known = key is not None and is_key(key)
        return key if self.known else None

    def expect_cookie_for(self, path: bytes) -> None:
        """Bind the cookies of a server to the client's path. Set it before every ClientHello."""
        self._buffer.setcookieparam(path)

    def feed(self, datagram: bytes) -> None:
        """Give it one datagram. Everything from earlier ones must have been read."""
        if datagram and len(datagram) <= _INPUT_MAX and self.failure is Failure.NONE:
            self._buffer.receive_from_network(datagram)

    def handshake(self) -> Status:
        """Continue the handshake, resending what is due by the clock of Mbed TLS."""
        if self.failure is not Failure.NONE:
            return Status.FAILED
        if self._store is None:
            return self._handshake()
        with self._store.serving(self):
            return self._handshake()

    def _handshake(self) -> Status:
        while self._buffer._handshake_state is not tls.HandshakeStep.HANDSHAKE_OVER:  # noqa: SLF001 - see above
            try:
                self._buffer.do_handshake()
            except tls.WantReadError:
                self._drain()
                return Status.WAITING
            except tls.WantWriteError:
                self._drain()
            except tls.HelloVerifyRequest:
                self._drain()
                return Status.COOKIE_SENT
            except TLSError as error:
                self._fail(error)
                return Status.FAILED
        self._drain()
        # The MTU would limit application data, too, whose size is the caller's decision.
        self._buffer.setmtu(0)
        return Status.OVER

    def read(self) -> list[bytes]:
        """The application plaintexts in the datagrams given so far, once the handshake is over."""
        plaintexts = []
        while self.failure is Failure.NONE:
            try:
                size = self._buffer.readinto(_PLAINTEXT, MAX_PLAINTEXT)
            except (tls.WantReadError, tls.WantWriteError):
                self._drain()
                break
            except TLSError as error:
                self._fail(error)
                break
            plaintexts.append(bytes(_PLAINTEXT[:size]))
        return plaintexts

    def write(self, plaintext: bytes) -> bytes:
        """One application data record; b"" if the connection has ended."""
        if self.failure is not Failure.NONE:
            return b""
        self._drain()
        try:
            self._buffer.write(plaintext)
        except TLSError as error:
            self._fail(error)
            return b""
        return self._take()

    def close(self) -> bytes:
        """The close_notify record; b"" if the connection has ended. The connection cannot be used afterwards."""
        if self.failure is not Failure.NONE:
            return b""
        self._drain()
        self._buffer.shutdown()
        self.failure = Failure.CLOSED
        return self._take()

    def take_records(self) -> list[bytes]:
        """The records to send that no other method has returned: handshake messages and alerts."""
        output, self._output = self._output, []
        return output

    def is_broken(self) -> bool:
        """Whether the connection has ended, for any reason."""
        return self.failure is not Failure.NONE

    def suite(self) -> Suite:
        """The suite of a handshake that is over."""
        return by_name(self._buffer.cipher())

    def is_native(self) -> bool:
        """Whether dtun's own protocol was agreed with the peer."""
        return bool(self._buffer.negotiated_protocol() == ALPN)

    def chosen_suite(self) -> Suite | None:
        """The suite in the ServerHello that we sent, before the handshake is over."""
        return self._chosen

    def export(self) -> dict[str, Any] | None:
        """The state for `restored`; this buffer cannot be used afterwards. None while Mbed TLS still needs the buffer.

        A server keeps its last flight, in case it was lost, until the client has sent application data.
        """
        try:
            state: dict[str, Any] = self._buffer.__getstate__()
        except TypeError:
            return None
        self.failure = Failure.OTHER
        connection: bytes = state["connection"]
        if connection.endswith(_ALPN_FIELD):
            # Before 2.28.8 Mbed TLS looks for the name in the wrong place and refuses every state that has one
            # (mbedtls_ssl_context_load). After the handshake the name is not needed.
            state["connection"] = connection.removesuffix(_ALPN_FIELD) + _NO_ALPN_FIELD
        return state

    def restored(self, state: dict[str, Any]) -> Self:
        """A new connection that continues where `state` was exported.

        Raises:
            ExportError: Mbed TLS refuses the state.
        """
        copy = type(self)(_Copy.__new__(_Copy), self._store)
        try:
            copy._buffer.__setstate__(state)  # noqa: SLF001 - of our own class
        except (TLSError, TypeError, ValueError, KeyError):
            raise ExportError("Mbed TLS does not take its state back") from None
        copy._buffer.setmtu(0)  # noqa: SLF001 - of our own class
        return copy

    def _fail(self, error: TLSError) -> None:
        self.failure = _FAILURES.get(getattr(error, "err", 0), Failure.OTHER)  # missing in its type stub
        self._drain()

    def _take(self) -> bytes:
        output = bytes(self._buffer.peek_outgoing(_OUTPUT_MAX))
        self._buffer.consume_outgoing(len(output))
        return output

    def _drain(self) -> None:
        for record in split(self._take()):
            self._output.append(record)
            code = server_hello_suite(record)
            if code is not None:
                self._chosen = by_code(code)


# Mbed TLS writes each plaintext here before it is copied; nothing is kept here between calls.
_PLAINTEXT: Final = bytearray(MAX_PLAINTEXT)


class KeyStore(Mapping[str, bytes]):
    """The server's keys as the mapping that python-mbedtls requires: asks the connection whose handshake is running.

    An unknown identity gets a random key, so that from outside it looks, and costs, the same as a wrong key.
    (An identity that is not UTF-8 is never looked up: Mbed TLS refuses it with an alert, which reveals nothing about
    identities that exist.) Not for use by several threads.
    """

    def __init__(self) -> None:
        self._client: MbedBuffer | None = None
        self._error: Exception | None = None

    def serving(self, client: MbedBuffer) -> "KeyStore":
        """Ask this client's connection for its key: `with store.serving(buffer): ...`."""
        self._client = client
        return self

    def __enter__(self) -> None:
        self._error = None

    def __exit__(self, *_: object) -> None:
        self._client = None
        if self._error is not None:
            raise self._error

    def __getitem__(self, identity: str) -> bytes:
        random_key, key = os.urandom(KEY_MAX), None
        if self._client is not None and is_identity(identity):
            try:
                key = self._client.find_key(identity)
            except Exception as error:  # noqa: BLE001 - C code would swallow it; __exit__ raises it again
                self._error = error
        return random_key if key is None else key

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def client_factory(
    identity: str, key: bytes, suites: Sequence[Suite], *, native: bool, retransmit: tuple[float, float]
) -> Callable[[], MbedBuffer]:
    """Makes a function that makes a client's connections. `retransmit`: first and longest wait in seconds."""
    context = tls.ClientContext(
        tls.DTLSConfiguration(
            pre_shared_key=(identity, key),
            inner_protocols=(ALPN.encode(),) if native else None,
            **_common(suites, retransmit),
        )
    )
    return lambda: MbedBuffer(context.wrap_buffers(None))


def server_factory(suites: Sequence[Suite], *, retransmit: tuple[float, float]) -> Callable[[], MbedBuffer]:
    """Makes a function that makes a server's connections; a cookie of one is valid for all."""
    store = KeyStore()
    context = tls.ServerContext(
        tls.DTLSConfiguration(
            pre_shared_key_store=store,
            inner_protocols=(ALPN.encode(),),
            **_common(suites, retransmit),
        )
    )
    return lambda: MbedBuffer(context.wrap_buffers(), store)


def _common(suites: Sequence[Suite], retransmit: tuple[float, float]) -> dict[str, Any]:
    shortest, longest = retransmit
    return {
        "ciphers": tuple(suite.name for suite in suites),
        "lowest_supported_version": tls.DTLSVersion.DTLSv1_2,
        "validate_certificates": False,  # there are none
        "handshake_timeout_min": shortest,
        "handshake_timeout_max": longest,
    }
