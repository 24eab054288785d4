"""The switches of the benchmark turn off what they name, and nothing else is left of it in dtun."""

import fcntl
import os
import socket
import struct
from pathlib import Path

import pytest

from bench.without import WORDS, replacements
from dtun.config import Key
from dtun.dtls.engine import ClientEngine, ServerEngine
from dtun.dtls.listener import Listener
from dtun.platform.linux import tun
from dtun.session import link
from tests.unit.dtls.wire import KEY, Wire


def test_without_offloads_a_tun_device_and_a_socket_take_single_packets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for replacement in replacements(["offload"]):
        monkeypatch.setattr(*replacement)
    asked: list[tuple[int, bytes]] = []
    driver = tmp_path / "tun"
    driver.touch()
    monkeypatch.setattr(tun, "DEVICE", str(driver))
    monkeypatch.setattr(fcntl, "ioctl", lambda _fd, request, argument: asked.append((request, argument)))
    device = tun.open_tun("dtun-demo", lambda _: None)
    device.enable_offloads(frozenset({"segments"}))
    assert (device.offloads, device.vnet_header) == (frozenset(), False)
    ((request, argument),) = asked
    (flags,) = struct.unpack_from("=H", argument, 16)
    assert request == tun.TUNSETIFF
    assert not flags & 0x4000, "IFF_VNET_HDR"
    os.close(device.fileno())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        datagrams = vars(link)["Datagrams"](udp)
        assert (datagrams.segments, datagrams.coalesces) == (False, False)


def test_without_record_offload_records_stay_in_mbed_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    for replacement in replacements(["record-offload"]):
        monkeypatch.setattr(*replacement)
    wire = Wire(Listener(ServerEngine(), lambda *_: Key(KEY)))
    client = ClientEngine("demo", KEY, native=True).associate(0.0)
    wire.exchange(client)
    assert client.takeover_done
    assert not client.records.offloaded
    assert client.fallback_reason == "turned off"


def test_each_word_turns_something_off_and_no_word_nothing() -> None:
    assert all(list(replacements([word])) for word in WORDS)
    assert not list(replacements([]))
