"""One DTLS association, from its first flight to its close. Pure: takes datagrams and `now`, gives datagrams.

A session starts inside Mbed TLS, and its keys are taken over as soon as possible: by a client right after the
handshake, by a server when the client's first application record has arrived. (Until then Mbed TLS keeps the
server's last flight and resends it when the client asks again.)
"""

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final

from dtun.dtls.key_takeover import take_over_keys
from dtun.dtls.mbed_records import MbedRecords
from dtun.dtls.status import HANDSHAKE_MTU, ExportError, Failure, Status
from dtun.protocol.record import is_client_hello, is_hello_request, plaintext_alert, server_hello_suite, split

if TYPE_CHECKING:
    from dtun.dtls.mbed import MbedBuffer
    from dtun.dtls.records import Records
    from dtun.dtls.suites import Suite

# Mbed TLS resends by its own clock and does not say when it is due.
POLL_INTERVAL: Final = 0.05

KEY_REFUSED = "the server does not accept the id or the key"

_ALERTS: Final = {
    20: KEY_REFUSED,  # bad_record_mac
    40: "no cipher suite in common",  # handshake_failure
    51: KEY_REFUSED,  # decrypt_error
    70: "the peer does not speak DTLS 1.2",  # protocol_version
    71: "the peer requires stronger cipher suites",  # insufficient_security
    115: KEY_REFUSED,  # unknown_psk_identity
    120: "the peer does not speak dtun's protocol",  # no_application_protocol
}


_FAILURES: Final = {
    Failure.ALERT: "the peer aborted the handshake",
    Failure.CLOSED: "the peer closed the handshake",
    Failure.NO_COMMON_SUITE: "no cipher suite in common",
    Failure.TIMEOUT: "the peer stopped answering",
    Failure.OTHER: "the peer sent a handshake message that is not valid",
}


class AssociationState(Enum):
    """The life of an association; FAILED and CLOSED are final."""

    HANDSHAKING = "handshaking"
    ESTABLISHED = "established"
    FAILED = "failed"
    CLOSED = "closed"


class Association:
    """One DTLS session with one peer.

    `records` exists once ESTABLISHED; it is replaced once, when `takeover_done` becomes true. Until then
    datagrams must be passed to `receive`; afterwards a caller may use `records.open` directly.
    """

    def __init__(self, buffer: "MbedBuffer", now: float, *, identity: str | None, server: bool) -> None:
        self._buffer = buffer
        self._server = server
        self._state = AssociationState.HANDSHAKING
        self._own_identity = identity
        self._outgoing: list[bytes] = []
        self._next_poll = now + POLL_INTERVAL
        self._alert: tuple[int, int] | None = None
        self._records: Records | None = None
        self.suite: Suite | None = None
        self.native = False
        self.answered = False
        self.takeover_done = False
        self.failure = ""
        self.fallback_reason = ""

    def __repr__(self) -> str:
        role = "server" if self._server else "client"
        return f"<Association {role} {self.identity!r} {self.state.value}>"

    @property
    def identity(self) -> str | None:
        """The PSK identity: a client's own; on a server the one that the client sent, None if it is not printable.

        Authenticated only once ESTABLISHED.
        """
        return self._buffer.identity if self._server else self._own_identity

    @property
    def state(self) -> AssociationState:
        if self._state is AssociationState.ESTABLISHED and self.records.closed:
            self._state = AssociationState.CLOSED
        return self._state

    @property
    def records(self) -> "Records":
        if self._records is None:
            raise RuntimeError("there are no records before the handshake is over")
        return self._records

    def receive(self, datagram: bytes, now: float) -> Sequence[bytes]:
        """Process a datagram; returns the application plaintexts in it. Never raises, whatever the bytes are."""
        if self._state is AssociationState.HANDSHAKING:
            # One record at a time: if a datagram begins with a ClientHello and also completes the handshake, Mbed TLS
            # assumes that the client has restarted, and drops the session that it has just made.
            return [plaintext for record in split(datagram) for plaintext in self._receive(record, now)]
        return self._receive(datagram, now)

    def _receive(self, datagram: bytes, now: float) -> Sequence[bytes]:
        if self._state is AssociationState.HANDSHAKING:
            if is_hello_request(datagram):
                # This handshake has already begun; Mbed TLS would treat the message as an error.
                return ()
            self._observe(datagram)
            self._buffer.feed(datagram)
            return self._advance(now)
        if self._records is None:
            return ()
        plaintexts = self._records.open(datagram)
        if plaintexts and not self.takeover_done:
            self._take_over_keys()
        return plaintexts

    def poll(self, now: float) -> None:
        """Resend what the peer has not answered. Call it at the time of `next_timer`."""
        if self._state is AssociationState.HANDSHAKING:
            self._advance(now)

    def next_timer(self) -> float | None:
        """When to call `poll`, on the clock of `now`; None if there is nothing to resend."""
        return self._next_poll if self._state is AssociationState.HANDSHAKING else None

    def take_outgoing(self) -> list[bytes]:
        """Datagrams to send: handshake flights, resent ones too, and alerts; at most 1,200 bytes each."""
        self._outgoing += self._buffer.take_records()
        records, self._outgoing = self._outgoing, []
        return _packed(records)

    def seal(self, plaintext: bytes) -> bytes:
        """One application data record, alone in its datagram. Only once ESTABLISHED."""
        return self.records.seal(plaintext)

    def close(self) -> bytes | None:
        """End the association. Returns the close_notify to send, if there is a session to close."""
        established = self.state is AssociationState.ESTABLISHED
        if self._state is not AssociationState.FAILED:
            self._state = AssociationState.CLOSED
        return self.records.seal_close() or None if established else None

    def _observe(self, record: bytes) -> None:
        """Remember what explains a failure to a person. It is not authenticated."""
        self.answered = self.answered or server_hello_suite(record) is not None
        self._alert = plaintext_alert(record) or self._alert

    def _advance(self, now: float) -> Sequence[bytes]:
        self._next_poll = now + POLL_INTERVAL
        status = self._buffer.handshake()
        if status is Status.FAILED:
            self._fail(self._explain())
        if status is not Status.OVER:
            return ()
        self.suite = self._buffer.suite()
        self.native = self._buffer.is_native()
        records = MbedRecords(self._buffer, self.suite)
        self._records = records
        self._state = AssociationState.ESTABLISHED
        early = records.read()
        if early or not self._server:
            self._take_over_keys()
        return early

    def _take_over_keys(self) -> None:
        if self.suite is None or self.state is not AssociationState.ESTABLISHED:
            return
        self._outgoing += self._buffer.take_records()
        try:
            taken = take_over_keys(self._buffer, self.suite, server=self._server)
        except ExportError as error:
            self._fail(str(error))
            return
        if taken is not None:
            self._records, self.fallback_reason = taken
            self.takeover_done = True

    def _fail(self, reason: str) -> None:
        self._state = AssociationState.FAILED
        self.failure = reason

    def _explain(self) -> str:
        failure = self._buffer.failure
        if failure is Failure.ALERT and self._alert is not None:
            code = self._alert[1]
            return _ALERTS.get(code, f"the peer aborted the handshake (alert {code})")
        if failure is Failure.BAD_MAC:
            if not self._server:
                return "the server does not have the same key"
            return "wrong key" if self._buffer.known else "unknown id"
        return _FAILURES[failure]


def _packed(records: list[bytes]) -> list[bytes]:
    """Put records into as few datagrams as the handshake MTU allows, in order.

    A ClientHello gets its own datagram: a server may treat the whole datagram as the start of another handshake.
    """
    datagrams: list[bytes] = []
    for record in records:
        if (
            datagrams
            and not is_client_hello(datagrams[-1])
            and not is_client_hello(record)
            and len(datagrams[-1]) + len(record) <= HANDSHAKE_MTU
        ):
            datagrams[-1] += record
        else:
            datagrams.append(record)
    return datagrams
