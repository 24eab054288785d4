"""Keeps the device of one tunnel, and the session that serves it, where they outlive this process."""

import logging
import socket
from collections.abc import Sequence

from dtun.dtls.records import AeadRecords
from dtun.protocol.messages import Hello, Welcome
from dtun.tunnel.dialect import NativeDialect
from dtun.tunnel.keepsake import Keepsake, describe
from dtun.tunnel.link import Link
from dtun.tunnel.vault import Vault, discard, session_name, socket_name, tun_name

log = logging.getLogger("dtun.tunnel")


class Keeper:
    """One device's place in the vault. At most one session is kept, with its socket."""

    def __init__(self, vault: Vault, device: str) -> None:
        self._vault = vault
        self._device = device
        self._keepsake: Keepsake | None = None

    def take_device(self) -> int | None:
        """The device's descriptor, if a process before this one has kept it. The caller owns it."""
        return self._vault.take(tun_name(self._device))

    def keep_device(self, descriptor: int) -> None:
        """Have the device kept, until `forget_device`."""
        self._vault.keep(tun_name(self._device), descriptor)

    def forget_device(self) -> None:
        """The device goes, and with it whatever served it."""
        self.forget_session()
        self._vault.forget(tun_name(self._device))

    def keep_session(self, link: Link, greeting: Hello | Welcome, *, server: bool, **notes: str) -> None:
        """This session serves now. One that is not ours to take apart (Mbed TLS, a Go dtun) is not kept."""
        if not self._vault.keeps:
            return
        association, dialect = link.session.association, link.session.dialect
        records = association.records
        if not isinstance(records, AeadRecords) or not isinstance(dialect, NativeDialect):
            self.forget_session()
            return
        description = describe(records.keys, association.identity or "", greeting, server=server, **notes)
        try:
            keepsake = Keepsake.make(description)
        except OSError as error:
            log.warning("%s: the session cannot be kept over a restart: %s", self._device, error)
            self.forget_session()
            return
        self._use(keepsake, records, dialect)
        self._vault.keep(session_name(self._device), keepsake.descriptor)
        self._vault.keep(socket_name(self._device), link.fileno())

    def take_session(self) -> tuple[Keepsake, socket.socket] | None:
        """The session of a process before this one, with its socket, for `resume`. None if there is none."""
        memory = self._vault.take(session_name(self._device))
        descriptor = self._vault.take(socket_name(self._device))
        if memory is None or descriptor is None:
            discard(memory)
            discard(descriptor)
            return None
        try:
            keepsake = Keepsake(memory)
        except ValueError as error:
            log.warning("%s: the session before the restart is of no use: %s", self._device, error)
            discard(memory)
            discard(descriptor)
            self._forget_names()
            return None
        return keepsake, socket.socket(fileno=descriptor)

    def resume(self, keepsake: Keepsake, link: Link) -> None:
        """The session that was taken works again, and goes on being kept."""
        records, dialect = link.session.association.records, link.session.dialect
        assert isinstance(records, AeadRecords) and isinstance(dialect, NativeDialect)  # noqa: S101, PT018 - kept ones are
        self._use(keepsake, records, dialect)

    def forget_session(self) -> None:
        """The session is over."""
        if self._keepsake is not None:
            self._keepsake.close()
            self._keepsake = None
            self._forget_names()

    def _use(self, keepsake: Keepsake, records: AeadRecords, dialect: NativeDialect) -> None:
        before, self._keepsake = self._keepsake, keepsake
        records.keep_account(keepsake.numbers[:2])
        dialect.keep_account(keepsake.numbers[2:])
        if before is not None and before is not keepsake:
            before.close()

    def _forget_names(self) -> None:
        self._vault.forget(session_name(self._device))
        self._vault.forget(socket_name(self._device))


def numbers_of(keepsake: Keepsake) -> Sequence[int]:
    """The numbers of the next control message to send, and of the next one expected."""
    return keepsake.numbers[2:]
