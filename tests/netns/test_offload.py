"""Offloads with real kernels: the model of segmentation against the kernel's own, and data through whole tunnels."""

import asyncio
import errno
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon import Daemon, make_key
from hypothesis import HealthCheck, given, settings, strategies as st
from topology import Host, Topology, wait_for

from dtun.platform.linux.tun import LinuxTun, open_tun
from tests.unit.protocol import segmenter
from tests.unit.protocol.packets import Original, extended_packets, super_packets

MEBIBYTE = 1 << 20


class Router:
    """A kernel that routes from one TUN device to another, which has all offloads off: so it has to segment."""

    def __init__(self, host: Host) -> None:
        def closed(_: LinuxTun) -> None: ...

        self.source, self.sink = open_tun("source", closed), open_tun("sink", closed)
        self.sink.hand_out(frozenset())
        for device in ("source", "sink"):
            host.run(
                "sysctl",
                "-qw",
                f"net.ipv6.conf.{device}.addr_gen_mode=1",
                f"net.ipv4.conf.{device}.rp_filter=0",
            )
            host.ip(f"link set {device} mtu 65535 txqueuelen 2000 up")
        host.ip("route add 10.0.0.1 dev sink")
        host.ip("route add fd00::1 dev sink")

    def close(self) -> None:
        self.source.close()
        self.sink.close()

    def segment(self, original: Original, count: int) -> list[bytes]:
        """What comes out for one write; waits for `count` packets, and takes more if there are."""
        os.write(self.source.fileno(), original.read)
        came: list[bytes] = []
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self.sink.fileno()], [], [], 0 if len(came) >= count else 0.5)
            if not ready:
                if len(came) >= count:
                    break
                continue
            read = os.read(self.sink.fileno(), 10 + 65535)
            assert segmenter.Virtio.decode(read) == segmenter.Virtio(), "the sink takes complete packets only"
            came.append(read[10:])
        return came


def hopped(packet: bytes, hops: int) -> bytes:
    """The packet with this many hops left."""
    at = 8 if packet[0] >> 4 == 4 else 7
    return segmenter.with_lengths(packet[:at] + bytes([hops]) + packet[at + 1 :])


def same_but_for_zero(one: bytes, other: bytes) -> bool:
    """Equal, where a checksum of zero may be written in two ways (RFC 1624, section 3)."""
    protocol, start = segmenter.transport(one)
    at = start + segmenter.CHECKSUM_AT[protocol]
    zero = (b"\0\0", b"\xff\xff")
    return one == other or (
        one[:at] + one[at + 2 :] == other[:at] + other[at + 2 :]
        and one[at : at + 2] in zero
        and other[at : at + 2] in zero
    )


def test_the_model_of_segmentation_is_what_the_kernel_does(net: Topology) -> None:
    host = net.host("router", forwards=True)
    seen = set()

    async def story() -> None:
        router = Router(host)

        @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.one_of(super_packets(max_segments=100), extended_packets()))
        def compare(original: Original) -> None:
            kind = original.virtio.kind
            if kind == "udp" and "udp-segments" not in router.source.offloads:
                return
            sent = Original(original.virtio, hopped(original.packet, 64))
            expected = segmenter.segments(hopped(original.packet, 63), original.virtio.size)
            came = router.segment(sent, len(expected))
            assert len(came) == len(expected)
            for real, model in zip(came, expected, strict=True):
                assert same_but_for_zero(real, model), (real[:80].hex(), model[:80].hex())
                assert segmenter.has_right_checksums(real)
            seen.add((kind, sent.packet[0] >> 4, original.virtio.ecn))

        try:
            compare()
        finally:
            router.close()

    host.play(story)
    assert seen >= {("tcp4", 4, True), ("tcp4", 4, False), ("tcp6", 6, True), ("tcp6", 6, False)}
    if not {("udp", 4, False), ("udp", 6, False)} <= seen:
        pytest.skip("this kernel cannot segment UDP (Linux 6.2 can): only TCP was compared")


class World:
    """Hosts at both ends of a tunnel, on devices that leave nothing to others: no offload of checksums or segments.

    pc -- router (client) == internet == server -- far
    """

    def __init__(self, net: Topology, directory: Path, *, mtu: int = 1500, ipv6: bool = True) -> None:
        self.directory = directory
        self.ipv6 = ipv6
        self.pc, self.far = net.host("pc"), net.host("far")
        self.router, self.server = net.host("router", forwards=True), net.host("server", forwards=True)
        net.cable(
            self.pc, "eth0", self.router, "lan", "10.0.0.2/24", "10.0.0.1/24", "fd00:a::2/64", "fd00:a::1/64"
        )
        net.cable(self.router, "wan", self.server, "eth0", "198.51.100.2/24", "198.51.100.1/24")
        net.cable(
            self.far, "eth0", self.server, "lan", "10.9.0.2/24", "10.9.0.1/24", "fd00:f::2/64", "fd00:f::1/64"
        )
        for host, device in ((self.router, "wan"), (self.server, "eth0")):
            host.ip(f"link set {device} mtu {mtu}")
        for host, device in (
            (self.pc, "eth0"),
            (self.router, "lan"),
            (self.far, "eth0"),
            (self.server, "lan"),
        ):
            off = "tx off rx off gro off gso off tso off".split()
            host.run("ethtool", "-K", device, *off)
            host.ip(f"link set {device} mtu {max(mtu, 1500)}")
        for host, gateway in ((self.pc, "10.0.0.1"), (self.far, "10.9.0.1")):
            host.ip(f"route add default via {gateway}")
            host.ip(f"route add default via {'fd00:a::1' if host is self.pc else 'fd00:f::1'}")
        self.key = str(make_key(directory))
        self.captures: list[subprocess.Popen[str]] = []

    def connect(self, endpoint: str = "198.51.100.1") -> dict[str, Any]:
        self.start_server()
        return self.start_client(endpoint)

    def start_server(self) -> Daemon:
        subnets = ["10.0.0.0/24"] + ["fd00:a::/64"] * self.ipv6
        pool6 = {"pool6": "fd00:86::/64"} if self.ipv6 else {}
        clients = {"demo": {"key_file": self.key, "subnets": subnets}}
        return Daemon(self.server, "server", {"clients": clients, **pool6}, self.directory)

    def start_client(self, endpoint: str = "198.51.100.1") -> dict[str, Any]:
        section: dict[str, Any] = {"servers": [endpoint], "id": "demo", "key_file": self.key}
        section["subnets"] = ["10.0.0.0/24"] + ["fd00:a::/64"] * self.ipv6
        section["routes"] = ["10.9.0.0/24"] + ["fd00:f::/64"] * self.ipv6
        client = Daemon(self.router, "client", section, self.directory)
        for address in self.addresses:
            serve(self.far, address)
        return client.wait_connected()

    @property
    def addresses(self) -> list[str]:
        return ["10.9.0.2", "fd00:f::2"] if self.ipv6 else ["10.9.0.2"]

    def watch(self) -> None:
        """Look at every packet that comes to the hosts at the ends, from now on."""
        for host in (self.pc, self.far):
            self.captures.append(ready(host, "tests/netns/checksums.py", "eth0"))

    def verdicts(self) -> list[dict[str, Any]]:
        """What was seen at the pc, and at the far host."""
        verdicts = []
        for capture in self.captures:
            output, _ = capture.communicate("enough\n", timeout=30)
            verdicts.append(json.loads(output))
        self.captures.clear()
        return verdicts

    def transfer(self, size: int, timeout: float = 60) -> None:
        """A file of so many bytes there, and another back, over each version of IP."""
        for seed, address in enumerate(self.addresses):
            talk(self.pc, "tcp", address, size, seed, timeout=timeout)


def ready(host: Host, *arguments: str) -> subprocess.Popen[str]:
    """Start a script of this directory and wait until it says so."""
    process = host.python(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def serve(host: Host, address: str) -> None:
    ready(host, "tests/netns/transfer.py", "serve", address, "7000")


def talk(host: Host, what: str, address: str, *numbers: int, timeout: float = 60) -> None:
    process = host.python(
        "tests/netns/transfer.py", what, address, "7000", *map(str, numbers), stdout=subprocess.PIPE
    )
    output, _ = process.communicate(timeout=timeout)
    assert output == "same\n"


@pytest.fixture
def world(net: Topology, tmp_path: Path) -> World:
    return World(net, tmp_path)


@pytest.mark.parametrize("mtu", [1280, 1500, 9000])
def test_files_arrive_and_no_checksum_is_bad_beyond_the_tunnel(
    net: Topology, tmp_path: Path, mtu: int
) -> None:
    world = World(net, tmp_path, mtu=mtu, ipv6=mtu > 1280)
    inner = world.connect()["mtu"]
    world.watch()

    world.transfer(20 * MEBIBYTE)
    for address in world.addresses:
        header = 48 if ":" in address else 28
        talk(world.pc, "udp", address, 1, inner - header) if mtu < 9000 else talk(
            world.pc, "udp", address, inner - header - 200, inner - header
        )

    for verdict in world.verdicts():
        assert verdict["bad"] == []
        assert verdict["largest"] == inner, "the path is used to its end"
        assert verdict["packets"] > len(world.addresses) * 20 * MEBIBYTE / inner
        assert verdict["protocol 17"] > 150
