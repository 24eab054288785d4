"""Name servers over D-Bus, with a message bus of the test's own and a fake resolved."""

import asyncio
import errno
import logging
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

import pytest
from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    new_error,
    new_method_call,
    new_method_return,
)
from jeepney.io.asyncio import DBusConnection, open_dbus_connection

from dtun.network.state import Dns
from dtun.platform.linux import resolved
from dtun.platform.linux.resolved import Resolved, ResolvedError

pytestmark = pytest.mark.skipif(
    shutil.which("dbus-daemon") is None,
    reason="dbus-daemon is not installed (apt-get install dbus)",
)

BUS = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
NAME = "org.freedesktop.resolve1"
DENIED = "org.freedesktop.DBus.Error.AccessDenied"

CONFIG = """
<busconfig>
  <type>custom</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""

# The loopback device is there on every machine.
INDEX = 1
OFFICE = Dns("lo", (ip_address("10.86.0.1"), ip_address("fd00:86::1")), ("corp.example", "~lab.example"))
TOLD = [
    ("SetLinkDefaultRoute", (INDEX, False)),
    ("SetLinkDomains", (INDEX, [("corp.example", False), ("lab.example", True)])),
    (
        "SetLinkDNS",
        (INDEX, [(2, ip_address("10.86.0.1").packed), (10, ip_address("fd00:86::1").packed)]),
    ),
]


class Daemon:
    """A dbus-daemon; it can be stopped and started at the same address."""

    def __init__(self, directory: Path) -> None:
        self.address = f"unix:path={directory / 'bus'}"
        self._config = directory / "bus.conf"
        self._config.write_text(CONFIG.format(address=self.address))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # It ends with this process, however that ends.
        command = ["setpriv", "--pdeathsig", "KILL", "dbus-daemon"]
        command += [f"--config-file={self._config}", "--nofork", "--print-address=1"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        # It says so when it listens.
        assert self._process.stdout.readline()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=10)
            self._process = None


class FakeResolved:
    """Owns resolved's name, and records the calls.

    `refusals`: an error's name and text for a method. `would_start`: what was called so that the bus would start
    resolved if it were not there.
    """

    def __init__(self, connection: DBusConnection, refusals: dict[str, tuple[str, str]]) -> None:
        self.told: list[tuple[str, Any]] = []
        self.refusals = refusals
        self.silent = False
        self.would_start: set[str] = set()
        self.named = False
        self._connection = connection
        self._task = asyncio.create_task(self._serve())

    @classmethod
    async def start(cls, address: str, refusals: dict[str, tuple[str, str]]) -> Self:
        fake = cls(await open_dbus_connection(address), refusals)
        await fake._connection.send(new_method_call(BUS, "RequestName", "su", (NAME, 0)))
        await wait_for(lambda: fake.named)
        return fake

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._connection.close()

    async def _serve(self) -> None:
        while True:
            message = await self._connection.receive()
            if message.header.fields.get(HeaderFields.member) == "NameAcquired":
                self.named = self.named or message.body[0] == NAME
            if message.header.message_type is MessageType.method_call:
                member = message.header.fields[HeaderFields.member]
                self.told.append((member, message.body))
                if not message.header.flags & MessageFlag.no_auto_start:
                    self.would_start.add(member)
                if not self.silent:
                    await self._connection.send(self._answer(message))

    def _answer(self, message: Message) -> Message:
        refusal = self.refusals.get(message.header.fields[HeaderFields.member])
        if refusal is None:
            return new_method_return(message)
        name, text = refusal
        return new_error(message, name, "s", (text,))


Another = Callable[..., Awaitable[FakeResolved]]


async def wait_for(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.01)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
async def another(daemon: Daemon) -> AsyncIterator[Another]:
    """Starts a resolved; the one before must have been stopped."""
    started: list[FakeResolved] = []

    async def start(**refusals: tuple[str, str]) -> FakeResolved:
        started.append(await FakeResolved.start(daemon.address, refusals))
        return started[-1]

    yield start
    for fake in started:
        await fake.stop()


@pytest.fixture
async def fake(another: Another) -> FakeResolved:
    return await another()


@pytest.fixture
async def ours(daemon: Daemon) -> AsyncIterator[Resolved]:
    ours = Resolved(daemon.address)
    yield ours
    await ours.close()


async def test_resolved_is_told_of_servers_and_domains_the_servers_last(
    fake: FakeResolved, ours: Resolved
) -> None:
    await ours.apply(OFFICE)
    assert fake.told == TOLD


@pytest.mark.parametrize(
    ("domains", "every_name"),
    [(("~.",), True), ((), True), (("corp.example", "~."), True), (("corp.example",), False)],
)
async def test_every_name_is_for_these_servers_if_that_is_asked_for_or_no_domain_is(
    fake: FakeResolved, ours: Resolved, domains: tuple[str, ...], every_name: bool
) -> None:
    await ours.apply(Dns("lo", (ip_address("10.86.0.1"),), domains))
    assert fake.told[0] == ("SetLinkDefaultRoute", (INDEX, every_name))
    assert ("." in [name for name, _ in fake.told[1][1][1]]) == ("~." in domains)


async def test_what_was_set_is_reverted(fake: FakeResolved, ours: Resolved) -> None:
    await ours.apply(OFFICE)
    await ours.revert("lo")
    assert fake.told[3:] == [("RevertLink", (INDEX,))]
    # A revert does not start resolved.
    assert fake.would_start == {"SetLinkDefaultRoute", "SetLinkDomains", "SetLinkDNS"}


async def test_a_process_that_set_nothing_can_revert_too(fake: FakeResolved, ours: Resolved) -> None:
    await ours.revert("lo")
    assert fake.told == [("RevertLink", (INDEX,))]


async def test_a_revert_of_a_removed_device_succeeds(fake: FakeResolved, ours: Resolved) -> None:
    await ours.revert("no-such-device")
    assert fake.told == []
    fake.refusals["RevertLink"] = ("org.freedesktop.resolve1.NoSuchLink", "Link 1 not known")
    await ours.revert("lo")
    assert fake.told == [("RevertLink", (INDEX,))]


async def test_a_revert_without_resolved_or_bus_succeeds(daemon: Daemon, ours: Resolved) -> None:
    await ours.revert("lo")
    daemon.stop()
    await ours.revert("lo")


@pytest.mark.parametrize(
    ("error", "text", "words"),
    [
        (DENIED, "Access denied", "does not allow this user"),
        (
            "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
            "Interactive authentication required.",
            "does not allow this user",
        ),
        ("org.freedesktop.resolve1.LinkBusy", "Link lo is managed.", "systemd-networkd manages lo"),
        ("org.freedesktop.resolve1.NoSuchLink", "Link 1 not known", "there is no device lo"),
        ("org.freedesktop.DBus.Error.NoReply", "Timed out", "does not reply"),
        # Not from the bus itself, so not about resolved.
        ("org.freedesktop.systemd1.UnitMasked", "polkit is masked", "refuses: polkit is masked"),
        ("org.freedesktop.DBus.Error.InvalidArgs", "Invalid DNS server", "refuses: Invalid DNS server"),
    ],
)
async def test_a_refusal_is_explained(
    fake: FakeResolved, ours: Resolved, error: str, text: str, words: str
) -> None:
    fake.refusals["SetLinkDNS"] = (error, text)
    with pytest.raises(ResolvedError, match=words) as caught:
        await ours.apply(OFFICE)
    assert "\n" not in str(caught.value)


async def test_a_missing_permission_to_revert_is_reported(fake: FakeResolved, ours: Resolved) -> None:
    fake.refusals["RevertLink"] = (DENIED, "Access denied")
    with pytest.raises(ResolvedError, match="does not allow this user"):
        await ours.revert("lo")


async def test_there_is_no_such_device(fake: FakeResolved, ours: Resolved) -> None:
    with pytest.raises(ResolvedError, match="there is no device no-such-device"):
        await ours.apply(Dns("no-such-device", (ip_address("10.86.0.1"),)))
    assert fake.told == []


async def test_resolved_is_not_running(ours: Resolved) -> None:
    with pytest.raises(ResolvedError, match="systemd-resolved is not running; start it"):
        await ours.apply(OFFICE)


async def test_there_is_no_bus(tmp_path: Path) -> None:
    lonely = Resolved(f"unix:path={tmp_path / 'none'}")
    with pytest.raises(ResolvedError, match=os.strerror(errno.ENOENT)):
        await lonely.apply(OFFICE)
    await lonely.close()


@pytest.mark.parametrize("address", ["nonsense", "tcp:host=192.0.2.1,port=1"])
async def test_an_invalid_bus_address(address: str) -> None:
    lonely = Resolved(address)
    with pytest.raises(ResolvedError, match="cannot reach the system's D-Bus"):
        await lonely.apply(OFFICE)
    await lonely.close()


@pytest.mark.parametrize("answer", [b"", b"REJECTED EXTERNAL\r\n"])
async def test_a_bus_that_refuses_the_login(tmp_path: Path, answer: bytes) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(refuse, tmp_path / "bus")
    lonely = Resolved(f"unix:path={tmp_path / 'bus'}")
    async with server:
        with pytest.raises(ResolvedError, match="cannot reach the system's D-Bus"):
            await lonely.apply(OFFICE)
    await lonely.close()


async def test_a_resolved_that_hangs_costs_a_few_seconds_and_the_next_call_works(
    fake: FakeResolved, ours: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolved, "TIMEOUT", 0.2)
    fake.silent = True
    with pytest.raises(ResolvedError, match=r"did not reply within 0\.2 s"):
        await ours.apply(OFFICE)
    monkeypatch.undo()
    fake.silent = False
    fake.told.clear()
    await ours.apply(OFFICE)
    assert fake.told == TOLD


async def test_an_answer_in_the_moment_in_which_its_caller_gives_up_does_no_harm(
    fake: FakeResolved, ours: Resolved
) -> None:
    await ours.apply(OFFICE)
    bus = ours._bus
    assert bus is not None
    fake.silent = True
    asking = asyncio.create_task(ours.apply(OFFICE))
    await wait_for(lambda: bus._waiting)
    serial, waiting = next(iter(bus._waiting.items()))
    waiting.cancel()
    question = new_method_call(BUS, "Hello")
    question.header.serial = serial
    bus._dispatch(new_method_return(question))
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not bus.lost


async def test_a_new_resolved_is_told_what_the_old_one_knew(
    another: Another, fake: FakeResolved, ours: Resolved
) -> None:
    await ours.apply(OFFICE)
    await fake.stop()
    new = await another()
    await wait_for(lambda: len(new.told) >= len(TOLD))
    assert new.told == TOLD


async def test_a_new_resolved_does_not_get_what_was_reverted(
    another: Another, fake: FakeResolved, ours: Resolved
) -> None:
    await ours.apply(OFFICE)
    await ours.revert("lo")
    await fake.stop()
    new = await another()
    await asyncio.sleep(0.1)
    # The reply to this comes after anything that the appearance of the new one could have caused.
    await ours.revert("lo")
    assert new.told == [("RevertLink", (INDEX,))]


async def test_a_new_resolved_that_refuses_at_first_is_told_again(
    another: Another,
    fake: FakeResolved,
    ours: Resolved,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(resolved, "FIRST_DELAY", 0.01)
    await ours.apply(OFFICE)
    await fake.stop()
    with caplog.at_level(logging.WARNING, resolved.__name__):
        new = await another(SetLinkDomains=(DENIED, "Access denied"))
        await wait_for(lambda: len(new.told) >= 6)
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith(
        "cannot restore name servers in systemd-resolved: systemd-resolved does not allow"
    )
    new.refusals.clear()
    await wait_for(lambda: new.told[-3:] == TOLD)


async def test_a_bus_that_starts_anew_is_found_again(
    daemon: Daemon,
    another: Another,
    fake: FakeResolved,
    ours: Resolved,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolved, "FIRST_DELAY", 0.01)
    await ours.apply(OFFICE)
    await fake.stop()
    daemon.stop()
    daemon.start()
    new = await another()
    await wait_for(lambda: new.told[-3:] == TOLD)
    await ours.revert("lo")
    assert new.told[-1] == ("RevertLink", (INDEX,))


async def test_closing_leaves_everything_as_it_is_and_can_be_done_twice(
    fake: FakeResolved, ours: Resolved
) -> None:
    await ours.apply(OFFICE)
    await ours.close()
    await ours.close()
    assert fake.told == TOLD
