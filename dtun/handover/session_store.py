"""Keeps the device of one tunnel, and the session that serves it, where they outlive this process."""

import logging
import socket
from collections.abc import Sequence

from dtun.dtls.records import AeadRecords
from dtun.handover.fdstore import FdStore, discard, session_name, socket_name, tun_name
from dtun.handover.saved_session import SavedSession, describe
from dtun.protocol.messages import Hello, Welcome
from dtun.session.dialect import NativeDialect
from dtun.session.link import Link

log = logging.getLogger("dtun.session")


class SessionStore:
    """One device's place in the fdstore. At most one session is kept, with its socket."""

    def __init__(self, fdstore: FdStore, device: str) -> None:
        self._fdstore = fdstore
        self._device = device
        self._saved: SavedSession | None = None

    def take_device(self) -> int | None:
        """The device's descriptor, if a process before this one has kept it. The caller owns it."""
        return self._fdstore.take(tun_name(self._device))

    def keep_device(self, descriptor: int) -> None:
        """Have the device kept, until `forget_device`."""
        self._fdstore.keep(tun_name(self._device), descriptor)

    def forget_device(self) -> None:
        """The device goes, and with it whatever served it."""
        self.forget_session()
        self._fdstore.forget(tun_name(self._device))

    def keep_session(self, link: Link, greeting: Hello | Welcome, *, server: bool, **notes: str) -> None:
        """This session serves now. One that is not ours to take apart (Mbed TLS, a Go dtun) is not kept."""
        if not self._fdstore.keeps:
            return
        association, dialect = link.session.association, link.session.dialect
        records = association.records
        if not isinstance(records, AeadRecords) or not isinstance(dialect, NativeDialect):
            self.forget_session()
            return
        description = describe(records.keys, association.identity or "", greeting, server=server, **notes)
        try:
            saved = SavedSession.make(description)
        except OSError as error:
            log.warning("%s: the session cannot be kept over a restart: %s", self._device, error)
            self.forget_session()
            return
        self._use(saved, records, dialect)
        self._fdstore.keep(session_name(self._device), saved.descriptor)
        self._fdstore.keep(socket_name(self._device), link.fileno())

    def take_session(self) -> tuple[SavedSession, socket.socket] | None:
        """The session of a process before this one, with its socket, for `resume`. None if there is none."""
        memory = self._fdstore.take(session_name(self._device))
        descriptor = self._fdstore.take(socket_name(self._device))
        if memory is None or descriptor is None:
            discard(memory)
            discard(descriptor)
            return None
        try:
            saved = SavedSession(memory)
        except ValueError as error:
            log.warning("%s: the session before the restart is of no use: %s", self._device, error)
            discard(memory)
            discard(descriptor)
            self._forget_names()
            return None
        return saved, socket.socket(fileno=descriptor)

    def resume(self, saved: SavedSession, link: Link) -> None:
        """The session that was taken works again, and goes on being kept."""
        records, dialect = link.session.association.records, link.session.dialect
        assert isinstance(records, AeadRecords) and isinstance(dialect, NativeDialect)  # noqa: S101, PT018 - kept ones are
        self._use(saved, records, dialect)

    def forget_session(self) -> None:
        """The session is over."""
        if self._saved is not None:
            self._saved.close()
            self._saved = None
            self._forget_names()

    def _use(self, saved: SavedSession, records: AeadRecords, dialect: NativeDialect) -> None:
        before, self._saved = self._saved, saved
        records.attach_ledger(saved.numbers[:2])
        dialect.attach_ledger(saved.numbers[2:])
        if before is not None and before is not saved:
            before.close()

    def _forget_names(self) -> None:
        self._fdstore.forget(session_name(self._device))
        self._fdstore.forget(socket_name(self._device))


def numbers_of(saved: SavedSession) -> Sequence[int]:
    """The numbers of the next control message to send, and of the next one expected."""
    return saved.numbers[2:]
