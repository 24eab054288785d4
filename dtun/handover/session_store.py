"""Keeps the device of one tunnel, and the session that serves it, in the descriptor store."""

import logging
import os
import socket

from dtun.dataplane.pump import Pump
from dtun.dtls.records import AeadRecords
from dtun.errors import UnavailableError
from dtun.handover.fdstore import FdStore, discard, session_name, socket_name, tun_name
from dtun.handover.saved_session import SavedSession, describe
from dtun.platform.interface import Kernel, Tun
from dtun.protocol.messages import Hello, Welcome
from dtun.session.dialect import NativeDialect
from dtun.session.link import Link

log = logging.getLogger("dtun.session")


class SessionStore:
    """One device's descriptors in the store. At most one session is kept, with its socket."""

    def __init__(self, fdstore: FdStore, device: str) -> None:
        self._fdstore = fdstore
        self._device = device
        self._saved: SavedSession | None = None

    def open_device(self, kernel: Kernel) -> tuple[Tun, bool]:
        """The device that the last process kept, with True; a new one if there is none, or if it is gone.

        It is kept from now on.

        Raises:
            DtunError: it cannot be made.
        """
        kept = self._fdstore.take(tun_name(self._device))
        if kept is not None:
            try:
                return kernel.create_tun(self._device, kept), True
            except UnavailableError as error:
                log.warning("%s: %s; it is made anew", self._device, error)
                os.close(kept)
                self.lose_device()
        tun = kernel.create_tun(self._device)
        self.keep_device(tun.fileno())
        return tun, False

    def watch_device(self, tun: Tun, pump: Pump) -> None:
        """Whenever the device is made anew, have the pump read that one, and keep it."""

        def lost() -> None:
            pump.device_lost()
            self.lose_device()

        def renewed() -> None:
            self.keep_device(tun.fileno())
            pump.device_renewed()

        tun.watch(lost, renewed)

    def keep_device(self, descriptor: int) -> None:
        """Keep the device until `forget_device`."""
        self._fdstore.keep(tun_name(self._device), descriptor)

    def lose_device(self) -> None:
        """Drop the device, which is gone, but keep the session that serves it."""
        self._fdstore.forget(tun_name(self._device))

    def forget_device(self) -> None:
        """Drop the device and any session that serves it."""
        self.forget_session()
        self._fdstore.forget(tun_name(self._device))

    def keep_session(self, link: Link, greeting: Hello | Welcome, *, server: bool, **notes: str) -> None:
        """Keep the session that serves now, in place of the last one. Not with Mbed TLS's records or a Go dtun."""
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
            log.warning("%s: the session cannot be saved for a restart: %s", self._device, error)
            self.forget_session()
            return
        self._use(saved, records, dialect)
        self._fdstore.keep(session_name(self._device), saved.descriptor)
        self._fdstore.keep(socket_name(self._device), link.fileno())

    def take_session(self) -> tuple[SavedSession, socket.socket] | None:
        """The session that the last process kept, with its socket, for `resume`. None without one."""
        memory = self._fdstore.take(session_name(self._device))
        descriptor = self._fdstore.take(socket_name(self._device))
        if memory is None and descriptor is None:
            return None
        if memory is None or descriptor is None:
            discard(memory)
            discard(descriptor)
            self._forget_names()
            return None
        try:
            saved = SavedSession(memory)
        except ValueError as error:
            log.warning("%s: the saved session cannot be resumed: %s", self._device, error)
            discard(memory)
            discard(descriptor)
            self._forget_names()
            return None
        return saved, socket.socket(fileno=descriptor)

    def discard(self, saved: SavedSession) -> None:
        """Wipe a session that was taken and is not resumed, and keep it no longer: its socket holds a port."""
        saved.close()
        self._forget_names()

    def resume(self, saved: SavedSession, link: Link) -> None:
        """Keep the session that was taken, which serves again."""
        records, dialect = link.session.association.records, link.session.dialect
        assert isinstance(records, AeadRecords) and isinstance(dialect, NativeDialect)  # noqa: S101, PT018 - only such sessions are kept
        self._use(saved, records, dialect)

    def forget_session(self) -> None:
        """Keep the session no longer, and wipe its memory."""
        if self._saved is not None:
            self._saved.close()
            self._saved = None
            self._forget_names()

    def _use(self, saved: SavedSession, records: AeadRecords, dialect: NativeDialect) -> None:
        before, self._saved = self._saved, saved
        records.attach_ledger(saved.record_ledger)
        dialect.attach_ledger(saved.message_ledger)
        if before is not None and before is not saved:
            before.close()

    def _forget_names(self) -> None:
        self._fdstore.forget(session_name(self._device))
        self._fdstore.forget(socket_name(self._device))
