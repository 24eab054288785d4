"""Offloads with real kernels: the model of segmentation against the kernel's own, and data through whole tunnels."""

import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon import Daemon, can_ping, make_key
from hypothesis import given, settings, strategies as st
from topology import Host, Topology, wait_for

import bench
from dtun.dataplane.datagrams import Datagrams
from dtun.platform.linux.tun import LinuxTun, open_tun
from tests.unit.protocol import segmenter
from tests.unit.protocol.packets import Original, extended_packets, super_packets

MEBIBYTE = 1 << 20
OFF = ("tx", "rx", "gro", "gso", "tso")
DTUN = ("-m", "dtun")
WITHOUT_OFFLOADS = (str(Path(bench.__file__).with_name("without.py")), "offload")


class Router:
    """A kernel that routes from one TUN device to another, which has all offloads off: so it has to segment."""

    def __init__(self, host: Host) -> None:
        def closed(_: LinuxTun) -> None: ...

        self.source, self.sink = open_tun("source", closed), open_tun("sink", closed)
        self.sink.enable_offloads(frozenset())
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
            # A kernel introduces itself to multicast groups on a new device.
            if read[10] >> 4 == 4 or read[10 + 24] != 0xFF:
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


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_the_model_of_segmentation_is_what_the_kernel_does(net: Topology, protocol: str) -> None:
    host = net.host("router", forwards=True)
    packets = super_packets(100, (segmenter.TCP if protocol == "TCP" else segmenter.UDP,))
    if protocol == "TCP":
        packets = st.one_of(packets, extended_packets())
    seen = set()

    async def story() -> bool:
        router = Router(host)

        @settings(max_examples=150)
        @given(packets)
        def compare(original: Original) -> None:
            sent = Original(original.virtio, hopped(original.packet, 64))
            expected = segmenter.segments(hopped(original.packet, 63), original.virtio.size)
            came = router.segment(sent, len(expected))
            assert len(came) == len(expected)
            for real, model in zip(came, expected, strict=True):
                assert same_but_for_zero(real, model), (real[:80].hex(), model[:80].hex())
                assert segmenter.has_right_checksums(real)
            seen.add((original.virtio.kind, sent.packet[0] >> 4))

        try:
            if protocol == "UDP" and "udp-segments" not in router.source.offloads:
                return False
            compare()
        finally:
            router.close()
        return True

    if not host.play(story):
        pytest.skip("this kernel cannot segment UDP from a TUN device (Linux 6.2 can)")
    assert seen == ({("tcp4", 4), ("tcp6", 6)} if protocol == "TCP" else {("udp", 4), ("udp", 6)})


class World:
    """Hosts at both ends of a tunnel, on devices that leave nothing to others: no offload of checksums or segments.

    pc -- router (client) == internet == server -- far

    But `sender`, "pc" or "far", keeps its offloads, and so does the router next to it: its super-packets come to the
    TUN device as they are. What it sends is judged at the other end, where a capture sees complete packets.
    """

    def __init__(
        self, net: Topology, directory: Path, *, sender: str = "", mtu: int = 1500, ipv6: bool = True
    ) -> None:
        self.directory = directory
        self.sender = sender
        self.ipv6 = ipv6
        self.pc, self.far = net.host("pc"), net.host("far")
        self.source, self.sink = (self.far, self.pc) if sender == "far" else (self.pc, self.far)
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
        for host, device, end in (
            (self.pc, "eth0", "pc"),
            (self.router, "lan", "pc"),
            (self.far, "eth0", "far"),
            (self.server, "lan", "far"),
        ):
            if end != sender:
                host.run("ethtool", "-K", device, *(word for what in OFF for word in (what, "off")))
            host.ip(f"link set {device} mtu {max(mtu, 1500)}")
        for host, gateway in ((self.pc, "10.0.0.1"), (self.far, "10.9.0.1")):
            host.ip(f"route add default via {gateway}")
            host.ip(f"route add default via {'fd00:a::1' if host is self.pc else 'fd00:f::1'}")
        self.key = str(make_key(directory))
        self.daemons: dict[str, Daemon] = {}
        self.captures: list[subprocess.Popen[str]] = []

    def connect(self, endpoint: str = "198.51.100.1") -> dict[str, Any]:
        self.start_server()
        return self.start_client(endpoint)

    def start_server(self, command: Sequence[str] = DTUN) -> Daemon:
        subnets = ["10.0.0.0/24"] + ["fd00:a::/64"] * self.ipv6
        pool6 = {"pool6": "fd00:86::/64"} if self.ipv6 else {}
        clients = {"demo": {"key_file": self.key, "subnets": subnets}}
        server = Daemon(self.server, "server", {"clients": clients, **pool6}, self.directory, command=command)
        self.daemons["far"] = server
        return server

    def start_client(self, endpoint: str = "198.51.100.1", command: Sequence[str] = DTUN) -> dict[str, Any]:
        section: dict[str, Any] = {"servers": [endpoint], "id": "demo", "key_file": self.key}
        section["subnets"] = ["10.0.0.0/24"] + ["fd00:a::/64"] * self.ipv6
        section["routes"] = ["10.9.0.0/24"] + ["fd00:f::/64"] * self.ipv6
        client = Daemon(self.router, "client", section, self.directory, command=command)
        self.daemons["pc"] = client
        for address in self.addresses:
            serve(self.sink, address)
        return client.wait_connected()

    @property
    def addresses(self) -> list[str]:
        """Of the host that `transfer` sends to."""
        both = ["10.0.0.2", "fd00:a::2"] if self.sink is self.pc else ["10.9.0.2", "fd00:f::2"]
        return both if self.ipv6 else both[:1]

    def offloads(self) -> list[list[str]]:
        """What the client and the server say that they use."""
        return [self.daemons["pc"].tunnel()["offloads"], self.daemons["far"].tunnel("demo")["offloads"]]

    def watch(self) -> None:
        """Look at every packet that comes to the hosts at the ends, from now on; with a sender, at what is its."""
        for host in (self.sink,) if self.sender else (self.pc, self.far):
            self.captures.append(ready(host, "tests/netns/checksums.py", "eth0"))
        if self.sender:
            self.captures.append(ready(self.source, "tests/netns/checksums.py", "eth0", "sent"))

    def verdicts(self) -> list[dict[str, Any]]:
        """What was seen at the pc, and at the far host; with a sender, at the other end only, and `sent` by it.

        No packet was bad, and each was one that the sender's kernel would have made of what it sent.
        """
        # In this order: what has come by now was sent by then.
        verdicts = [json.loads(capture.communicate("enough\n", timeout=30)[0]) for capture in self.captures]
        self.captures.clear()
        if self.sender:
            sent = verdicts.pop()
            verdicts[0]["sent"] = sent
            foreign = verdicts[0]["prints"].keys() - sent["prints"].keys()
            assert [verdicts[0]["prints"][one] for one in foreign][:5] == []
        for verdict in verdicts:
            assert verdict["bad"] == []
        return verdicts

    def spared(self) -> tuple[int, int]:
        """How many packets less than segments the sender's TUN device handed out, and the other end's one took."""
        source, sink = ("far", "pc") if self.sender == "far" else ("pc", "far")
        counts = []
        for end, way in ((source, "tx"), (sink, "rx")):
            daemon = self.daemons[end]
            tunnel = daemon.tunnel("demo")
            # One for each read or write, so for each super-packet, if it is one. Asked later: never less than it was.
            device = f"/sys/class/net/{tunnel['device']}/statistics/{way}_packets"
            counts.append(tunnel[f"{way}_packets"] - int(daemon.host.run("cat", device)))
        return counts[0], counts[1]

    def transfer(self, size: int, timeout: float = 60) -> None:
        """A file of so many bytes there, and another back, over each version of IP."""
        for seed, address in enumerate(self.addresses):
            talk(self.source, "tcp", address, size, seed, timeout=timeout)


def offloads_of(host: Host) -> list[str]:
    """All that this kernel has."""

    async def story() -> list[str]:
        def closed(_: LinuxTun) -> None: ...

        tun = open_tun("probe", closed)
        tun.close()
        return sorted(tun.offloads)

    offloads = host.play(story)
    assert "segments" in offloads
    return offloads


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


@pytest.mark.parametrize(
    ("mtu", "sender"),
    [(1280, "pc"), (1280, "far"), (1500, ""), (1500, "pc"), (1500, "far"), (9000, "pc"), (9000, "far")],
)
def test_files_arrive_and_no_checksum_is_bad_beyond_the_tunnel(
    net: Topology, tmp_path: Path, mtu: int, sender: str
) -> None:
    world = World(net, tmp_path, sender=sender, mtu=mtu, ipv6=mtu > 1280)
    size = 8 * MEBIBYTE
    inner = world.connect()["mtu"]
    assert world.offloads() == [offloads_of(world.router)] * 2
    world.watch()

    world.transfer(size)
    for address in world.addresses:
        header = 48 if ":" in address else 28
        largest = inner - header
        talk(world.source, "udp", address, 1 if mtu < 9000 else largest - 200, largest)
        if sender:
            talk(world.source, "batch", address, 1000, 400)

    least = len(world.addresses) * size / inner
    for verdict in world.verdicts():
        assert verdict["largest"] == inner, "the path is used to its end"
        assert verdict["packets"] > least
        assert verdict["protocol 17"] > 150
    if sender:
        enabled_offloads, taken = world.spared()
        assert enabled_offloads > least * 0.7, "most segments are read as super-packets"
        assert taken > least * 0.5, "and written as such"


@pytest.mark.parametrize("obstacle", ["a small MTU", "no checksum offload"])
def test_datagrams_pass_where_a_batch_of_them_cannot(net: Topology, obstacle: str) -> None:
    near, far = net.host("near"), net.host("far")
    net.cable(near, "eth0", far, "eth0", "192.0.2.1/24", "192.0.2.2/24")
    if obstacle == "a small MTU":
        near.ip("link set eth0 mtu 600")
    else:
        near.run("ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off")
    sent = [number.to_bytes(2) + bytes(998) for number in range(40)]

    async def receive() -> Datagrams:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("192.0.2.2", 7000))
        sock.settimeout(5)
        return Datagrams(sock, batches=False)

    async def send() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("192.0.2.2", 7000))
            sock.setblocking(False)
            sender = Datagrams(sock)
            assert sender.send(sent) == len(sent)
            return sender.segments

    receiver = far.play(receive)
    with receiver.socket:
        still_in_batches = near.play(send)
        assert [receiver.socket.recv(2000) for _ in sent] == sent
    # A kernel without checksum offload refuses a batch (before Linux 6.11), or finishes it by itself.
    assert not still_in_batches or obstacle == "no checksum offload"


@pytest.mark.parametrize("server_offloads", [True, False], ids=["server offloads", "server does not"])
def test_ends_with_and_without_offloads_understand_each_other(
    net: Topology, tmp_path: Path, server_offloads: bool
) -> None:
    world = World(net, tmp_path, sender="far" if server_offloads else "pc")
    world.start_server(command=DTUN if server_offloads else WITHOUT_OFFLOADS)
    inner = world.start_client(command=WITHOUT_OFFLOADS if server_offloads else DTUN)["mtu"]
    assert world.offloads() == [[], []]
    world.watch()

    world.transfer(4 * MEBIBYTE)
    for address in world.addresses:
        talk(world.source, "udp", address, 1000, inner - 48)
        talk(world.source, "batch", address, 1000, 80)

    (verdict,) = world.verdicts()
    assert verdict["largest"] == inner
    assert verdict["sent"]["super-packets"] > 0, "the kernel had to segment them in front of the tunnel"
    enabled_offloads, taken = world.spared()
    assert enabled_offloads <= 0
    assert taken <= 0


@pytest.mark.parametrize(
    ("sender", "longest_delay"),
    [("pc", 0.0), ("pc", 0.0005), ("far", 0.0005)],
    ids=["from the pc", "from the pc, reordered", "from the far host, reordered"],
)
def test_congestion_is_signalled_through_the_tunnel_without_loss(
    net: Topology, tmp_path: Path, sender: str, longest_delay: float
) -> None:
    world = World(net, tmp_path, sender=sender)
    use_ecn(world)
    # What is reordered arrives in pieces of super-packets, which have a CWR in their headers but may not have one.
    endpoint = through_relay(world, 7, 1e-9, longest_delay) if longest_delay else "198.51.100.1"
    world.connect(endpoint)
    # The router in front of the sender's end of the tunnel says "congested" now and then, of super-packets only.
    router, ip = (world.router, "ip") if sender == "pc" else (world.server, "ip6")
    mark = f"{ip} length > 3000 {ip} ecn ect0 numgen random mod 4 == 0 {ip} ecn set ce"
    chain = f"chain in {{ type filter hook forward priority 0; iifname lan {mark}; }}"
    router.run("nft", f"table inet congested {{ {chain}; }}")
    world.watch()

    talk(world.source, "tcp", world.addresses[ip == "ip6"], 8 * MEBIBYTE, 1)

    (verdict,) = world.verdicts()
    assert verdict["congested"] > 0, "the receiver heard of it"
    assert verdict["sent"]["CWR of super-packets"] > 0, "the sender answered"
    # In the first segment of a super-packet only: `verdicts` has compared each packet with what was sent.
    assert 0 < verdict["CWR"] <= verdict["sent"]["CWR"]


def use_ecn(world: World) -> None:
    for host in (world.pc, world.far):
        host.run("sysctl", "-qw", "net.ipv4.tcp_ecn=1")


def through_relay(world: World, seed: int, loss: float, longest_delay: float) -> str:
    """Puts a bad network between the client and the server; returns the endpoint for the client to use."""
    script = (
        "import asyncio, sys; sys.path.insert(0, 'tests/netns'); import relay; "
        f"relay.LONGEST_DELAY = {longest_delay}; relay.DUPLICATES = 0.02; "
        f"asyncio.run(relay.main('127.0.0.1', '7001', '198.51.100.1', '443', '{seed}', '{loss}'))"
    )
    ready(world.router, "-c", script)
    return "127.0.0.1:7001"


@pytest.mark.parametrize(
    ("sender", "loss", "longest_delay"),
    [("pc", 0.001, 0.0), ("far", 0.0003, 0.002)],
    ids=["loss", "reordering"],
)
def test_files_arrive_over_a_bad_network(
    net: Topology, tmp_path: Path, sender: str, loss: float, longest_delay: float
) -> None:
    world = World(net, tmp_path, sender=sender)
    use_ecn(world)
    tunnel = world.connect(through_relay(world, 7, loss, longest_delay))
    assert tunnel["offloaded"]
    assert world.offloads() == [offloads_of(world.router)] * 2
    world.watch()

    size = 12 * MEBIBYTE
    world.transfer(size, timeout=100)

    (verdict,) = world.verdicts()
    # With ECN the answer to loss is a CWR; some super-packets with it arrive in pieces.
    assert verdict["sent"]["CWR of super-packets"] > 0
    enabled_offloads, taken = world.spared()
    assert enabled_offloads > len(world.addresses) * size / 1500 * 0.7, (
        "most segments are read as super-packets"
    )
    assert taken > 0, "and some still follow each other at the other end"


def test_datagrams_that_are_forwarded_one_by_one_are_written_together(net: Topology, tmp_path: Path) -> None:
    world = World(net, tmp_path)
    world.connect()
    if "udp-segments" not in offloads_of(world.router):
        pytest.skip("this kernel takes no super-packets of UDP (Linux 6.2 does)")
    world.watch()
    for address in world.addresses:
        talk(world.source, "batch", address, 200, 800)
        talk(world.source, "batch", address, 501, 800)

    for verdict in world.verdicts():
        assert verdict["protocol 17"] >= 2 * 800
    enabled_offloads, taken = world.spared()
    assert enabled_offloads <= 0, "the pc's kernel has left nothing to do"
    assert taken > 800, "half of them and more were joined"


def test_one_of_fifty_clients_that_floods_does_not_starve_the_others(net: Topology, tmp_path: Path) -> None:
    key = str(make_key(tmp_path))
    left, right, noisy = net.host("left"), net.host("right"), net.host("noisy")
    net.cable(left, "eth0", right, "eth0", "198.51.100.1/25", "198.51.100.2/25")
    net.cable(left, "eth1", noisy, "eth0", "198.51.100.129/25", "198.51.100.130/25")
    server = Daemon(left, "server", {"clients": {"*": {"key_file": key}}}, tmp_path)
    for number in range(49):
        section = {
            "servers": ["198.51.100.1"],
            "key_file": key,
            "id": f"branch-{number}",
            "tun": f"dtun{number}",
        }
        config = {"client": section | {"runtime_directory": str(tmp_path)}}
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(config))
    flooder = {"servers": ["198.51.100.129"], "key_file": key, "id": "noisy"}
    Daemon(noisy, "client", flooder, tmp_path).wait_connected()
    clients = right.python("tests/netns/many_clients.py", str(tmp_path), "49", stdout=subprocess.PIPE)
    assert clients.stdout is not None
    assert clients.stdout.readline().startswith("connected")
    serve(left, "10.86.0.1")

    flood = ready(noisy, "tests/netns/transfer.py", "flood", "10.86.0.1", "9", "dtun0")
    before = server.tunnel("noisy")["rx_packets"]
    wait_for(lambda: server.tunnel("noisy")["rx_packets"] > before + 5000, "the flood to come in")
    for number in range(0, 49, 8):
        assert can_ping(right, "10.86.0.1", "-W", "3", "-I", f"dtun{number}", count=3), number
    newcomer = {"servers": ["198.51.100.1"], "key_file": key, "id": "newcomer", "tun": "newcomer"}
    Daemon(right, "client", newcomer, tmp_path).wait_connected()
    assert can_ping(right, "10.86.0.1", "-W", "3", "-I", "newcomer", count=3)
    talk(right, "tcp", "10.86.0.1", MEBIBYTE, 3)
    wait_for(lambda: server.tunnel("noisy")["rx_packets"] > before + 20000, "the flood to go on")
    assert flood.poll() is None

    flood.communicate("enough\n", timeout=10)
    clients.terminate()
    assert clients.wait(30) == 0
