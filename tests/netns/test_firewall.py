"""Firewall and settings against a real kernel: what packets look like behind them, and what outlives a process."""

import asyncio
import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network

import pytest
from kernels import until
from topology import Host, Topology, wait_for

from dtun.network.state import (
    ClampMss,
    DropOtherTrafficToServer,
    DropOutsideTunnel,
    DropUnreachableIPv6,
    Filter,
    Masquerade,
)
from dtun.platform.linux import sysctl
from dtun.platform.linux.nftables.firewall import NOT_PERMITTED, Firewall, FirewallError
from dtun.platform.linux.sysctl import SysctlError

TABLE = "dtun-home"
NAT: frozenset[Filter] = frozenset({Masquerade("inside0", "outside0")})
CLAMP: frozenset[Filter] = frozenset({ClampMss("inside0", 1300)})
GUARD: frozenset[Filter] = frozenset(
    {
        DropOtherTrafficToServer(ip_address("192.0.2.2"), 4433),
        DropOtherTrafficToServer(ip_address("2001:db8::2"), 4433),
    }
)
PORT = 4433

# Says by whom it is called at a port, until its input ends: listener.py FAMILY KIND ADDRESS PORT
LISTENER = """
import select, socket, sys
family, kind, address, port = sys.argv[1:]
with socket.socket(getattr(socket, family), getattr(socket, kind)) as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, int(port)))
    if kind == "SOCK_STREAM":
        listener.listen()
    print("ready", flush=True)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        if kind == "SOCK_STREAM":
            connection, peer = listener.accept()
            connection.close()
        else:
            peer = listener.recvfrom(100)[1]
        print(peer[0], flush=True)
"""

# Opens a connection: caller.py SOURCE ADDRESS PORT SEGMENT_SIZE, the source "" and the size 0 as the kernel likes
CALLER = """
import socket, sys
source, address, port, size = sys.argv[1:]
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as caller:
    caller.settimeout(2)
    if int(size):
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, int(size))
    caller.bind((source, 0))
    caller.connect((address, int(port)))
"""

# Has filters until it is killed: holder.py FILTERS
HOLDER = """
import asyncio, sys
from ipaddress import ip_address, ip_network
from dtun.network.state import ClampMss, DropOtherTrafficToServer, Masquerade
from dtun.platform.linux.nftables.firewall import Firewall
async def story():
    firewall = Firewall("dtun-home")
    try:
        await firewall.apply(eval(sys.argv[1]))
        print(await firewall.present(), flush=True)
        sys.stdin.read()
    finally:
        firewall.close()
asyncio.run(story())
"""


def applied(host: Host, *wanted: Iterable[Filter], table: str = TABLE) -> None:
    """Apply one after the other on `host`."""

    async def story() -> None:
        firewall = Firewall(table)
        try:
            for filters in wanted:
                await firewall.apply(frozenset(filters))
                assert await firewall.present() is bool(filters)
        finally:
            firewall.close()

    host.play(story)


def code(filters: frozenset[Filter]) -> str:
    """For HOLDER: the expression that makes these filters."""
    return re.sub(r"IPv[46]Address", "ip_address", repr(filters))


def rules(host: Host, table: str = TABLE) -> dict[str, list[str]]:
    """The rules of each chain, as nft(8) shows them; without a table, nothing."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in host.run("nft", "list", "table", "inet", table, check=False).splitlines()[1:-1]:
        match line.split():
            case ["chain", name, "{"]:
                found[name] = []
            case ["set" | "map", _, "{"]:
                name = ""
            case [] | ["}"]:
                pass
            case words if name:
                found[name].append(" ".join(words))
    return found


def elements(host: Host, name: str) -> dict[str, int]:
    """What a map from devices to segment sizes has."""
    (shown,) = (
        entry["map"]
        for entry in json.loads(host.run("nft", "-j", "list", "map", "inet", TABLE, name))["nftables"]
        if "map" in entry
    )
    return {device: int(size) for device, size in shown.get("elem", [])}


@contextmanager
def listening(host: Host, family: str, kind: str, address: str, port: int = PORT) -> Iterator[list[str]]:
    """A listener on `host`; the list has the addresses of all senders at the end."""
    command = ("-c", LISTENER, family, kind, address, str(port))
    listener = host.python(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    output = listener.stdout
    assert output is not None
    assert output.readline() == "ready\n"
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.extend(line.strip() for line in output))
    reader.start()
    try:
        yield heard
    finally:
        assert listener.stdin is not None
        listener.stdin.close()
        reader.join(10)


def call(host: Host, address: str, *, source: str = "", size: int = 0) -> bool:
    """Whether a TCP connection can be opened; `size` is the segment size to announce."""
    caller = host.python("-c", CALLER, source, address, str(PORT), str(size), stderr=subprocess.DEVNULL)
    return caller.wait(timeout=20) == 0


def pings(host: Host, address: str, *options: str) -> bool:
    ping = host.popen(
        "ping", "-n", "-c1", "-W1", *options, address, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return ping.wait(timeout=10) == 0


@pytest.fixture
def way(net: Topology) -> tuple[Host, Host, Host]:
    """A client, a router and a far host, on one line. The far host knows the router only.

    client 10.7.0.2 fd07::2 | inside0 10.7.0.1 fd07::1, outside0 192.0.2.1 2001:db8::1 | far 192.0.2.2 2001:db8::2
    """
    client, router, far = net.host("client"), net.host("router", forwards=True), net.host("far")
    for host in (client, router, far):
        # Link-local addresses are unique here: duplicate address detection would only take a second.
        host.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
    net.cable(client, "eth0", router, "inside0", "10.7.0.2/24", "10.7.0.1/24", "fd07::2/64", "fd07::1/64")
    net.cable(
        router, "outside0", far, "eth0", "192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "2001:db8::2/64"
    )
    client.ip("route add default via 10.7.0.1")
    client.ip("route add default via fd07::1")
    return client, router, far


def known(far: Host) -> None:
    """From now on the far host has routes to the client."""
    far.ip("route add 10.7.0.0/24 via 192.0.2.1")
    far.ip("route add fd07::/64 via 2001:db8::1")


@pytest.mark.parametrize(
    ("family", "target", "outside"),
    [("AF_INET", "192.0.2.2", "192.0.2.1"), ("AF_INET6", "2001:db8::2", "2001:db8::1")],
)
def test_the_far_host_sees_the_address_of_the_masquerading_one(
    way: tuple[Host, Host, Host], family: str, target: str, outside: str
) -> None:
    client, router, far = way
    assert not pings(client, target)
    applied(router, NAT)
    assert pings(client, target)
    with listening(far, family, "SOCK_STREAM", target) as heard:
        assert call(client, target)
    assert heard == [outside]


def test_only_what_comes_from_inside_is_masqueraded(net: Topology, way: tuple[Host, Host, Host]) -> None:
    _, router, far = way
    other = net.host("other")
    net.cable(other, "eth0", router, "other0", "10.8.0.2/24", "10.8.0.1/24")
    other.ip("route add default via 10.8.0.1")
    far.ip("route add 10.8.0.0/24 via 192.0.2.1")
    router.ip("address add 192.0.2.9/24 dev outside0")
    applied(router, NAT)
    with listening(far, "AF_INET", "SOCK_STREAM", "192.0.2.2") as heard:
        assert call(other, "192.0.2.2")
        # The router's own connection, from another address than masquerading would give it.
        assert call(router, "192.0.2.2", source="192.0.2.9")
    assert heard == ["10.8.0.2", "192.0.2.9"]


def test_a_connection_goes_on_while_the_table_is_replaced(way: tuple[Host, Host, Host]) -> None:
    client, router, _ = way
    applied(router, NAT)
    ping = client.popen(
        "ping", "-n", "-i", "0.01", "-c", "60", "-W", "2", "192.0.2.2", stdout=subprocess.PIPE
    )
    assert ping.stdout is not None
    wait_for(lambda: "icmp_seq=5 " in (ping.stdout.readline() if ping.stdout else ""), "the fifth answer")
    for _ in range(5):
        applied(router, NAT | CLAMP, NAT)
    output = ping.communicate(timeout=20)[0]
    assert "60 packets transmitted, 60 received, 0% packet loss" in output


@contextmanager
def segment_sizes(host: Host) -> Iterator[list[int]]:
    """What the first segment with SYN that comes to `host` announces, by a capture."""
    sizes: list[int] = []
    # Without --immediate-mode a single packet would wait for others.
    capture = host.popen(
        *("tcpdump", "-i", "eth0", "-n", "-c1", "--immediate-mode", "-Q", "in"),
        "(ip6 and ip6[6] == 6 and ip6[53] & 2 != 0) or (ip and tcp[tcpflags] & tcp-syn != 0)",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert capture.stderr is not None
    while "listening on" not in (line := capture.stderr.readline()):
        assert line, "tcpdump ended"
    yield sizes
    sizes.extend(int(size) for size in re.findall(r"mss (\d+)", capture.communicate(timeout=10)[0]))


@pytest.mark.parametrize(
    ("family", "near", "target", "largest"),
    [("AF_INET", "10.7.0.2", "192.0.2.2", 1460), ("AF_INET6", "fd07::2", "2001:db8::2", 1440)],
)
def test_segments_fit_into_the_tunnel_whoever_opens_the_connection(
    way: tuple[Host, Host, Host], family: str, near: str, target: str, largest: int
) -> None:
    client, router, far = way
    known(far)
    with listening(far, family, "SOCK_STREAM", target), listening(client, family, "SOCK_STREAM", near):

        def announced(caller: Host, callee: Host, address: str, size: int = 0) -> tuple[list[int], list[int]]:
            """What the callee sees in the SYN, and the caller in the answer."""
            with segment_sizes(callee) as asked, segment_sizes(caller) as answered:
                assert call(caller, address, size=size)
            return asked, answered

        assert announced(client, far, target) == ([largest], [largest])
        applied(router, CLAMP)
        # 1300 bytes of the tunnel without 20 or 40 of IP and 20 of TCP.
        fitting = largest - 1500 + 1300
        assert announced(client, far, target) == ([fitting], [fitting])
        assert announced(far, client, near) == ([fitting], [fitting])
        # Smaller ones are left alone.
        assert announced(client, far, target, 1000) == ([1000], [fitting])
        applied(router, frozenset({ClampMss("elsewhere0", 1300)}))
        assert announced(client, far, target) == ([largest], [largest])


@pytest.mark.parametrize("forwarded", [False, True], ids=["output", "forward"])
@pytest.mark.parametrize(
    ("family", "server", "other"),
    [("AF_INET", "192.0.2.2", "192.0.2.3"), ("AF_INET6", "2001:db8::2", "2001:db8::3")],
)
def test_only_udp_to_its_port_comes_to_a_guarded_server(
    way: tuple[Host, Host, Host], family: str, server: str, other: str, forwarded: bool
) -> None:
    client, router, far = way
    known(far)
    far.ip("address add 192.0.2.3/24 dev eth0")
    far.ip("address add 2001:db8::3/64 dev eth0 nodad")
    sender = client if forwarded else router
    assert pings(sender, server)
    applied(router, GUARD)
    with (
        listening(far, family, "SOCK_STREAM", server) as connections,
        listening(far, family, "SOCK_DGRAM", server) as datagrams,
        listening(far, family, "SOCK_DGRAM", server, PORT + 1) as strays,
    ):

        def send(port: int) -> None:
            # What the guard drops of the host's own is refused to the sender (EPERM).
            sender.run("bash", "-c", f"echo x > /dev/udp/{server}/{port}", check=False)

        send(PORT + 1)
        send(PORT)
        assert not pings(sender, server)
        assert not call(sender, server)
        assert pings(sender, other)
        send(PORT)
        wait_for(lambda: len(datagrams) == 2, "the two datagrams to its port")
    assert (len(datagrams), strays, connections) == (2, [], [])
    applied(router, frozenset())
    assert pings(sender, server)


def test_a_guarded_server_on_the_same_link_is_found_and_finds_us(way: tuple[Host, Host, Host]) -> None:
    """Neighbour discovery of IPv6 goes on, also when it asks the server itself, or answers it."""
    _, router, far = way
    applied(router, GUARD)
    with listening(far, "AF_INET6", "SOCK_DGRAM", "2001:db8::2") as datagrams:
        # The server asks for our link address, and a datagram of ours needs the server's.
        far.run("ping", "-n", "-c1", "-W1", "2001:db8::1", check=False)
        wait_for(
            lambda: "lladdr" in far.ip("-6 neigh show 2001:db8::1"), "the server to know our link address"
        )
        router.run("bash", "-c", f"echo x > /dev/udp/2001:db8::2/{PORT}")
        # When the entry has become old, the kernel asks the neighbour by its address whether it is there.
        router.ip("-6 neigh change 2001:db8::2 dev outside0 nud probe")
        wait_for(
            lambda: "REACHABLE" in router.ip("-6 neigh show 2001:db8::2"), "the server to answer the probe"
        )
        wait_for(lambda: datagrams, "the datagram")


def test_the_table_is_made_replaced_and_deleted(way: tuple[Host, Host, Host]) -> None:
    _, router, _ = way
    applied(router, frozenset(), NAT)
    masquerading = {
        "nat_postrouting": [
            "type nat hook postrouting priority srcnat; policy accept;",
            "iifname . oifname @masqueraded masquerade",
        ]
    }
    assert rules(router) == masquerading
    applied(router, NAT, NAT)
    assert rules(router) == masquerading
    applied(router, NAT | CLAMP | GUARD)
    assert [name for name, lines in rules(router).items() for _ in lines[1:]] == (
        ["nat_postrouting"] + ["clamp_forward"] * 6 + ["guard_output"] * 6 + ["guard_forward"] * 4
    )
    applied(router, NAT)
    assert rules(router) == masquerading
    applied(router, frozenset(), frozenset())
    assert router.run("nft", "list", "tables") == ""


def test_tables_of_others_are_left_alone(way: tuple[Host, Host, Host]) -> None:
    _, router, _ = way
    others = """
        table ip dtun-home {
            chain input { type filter hook input priority 0; policy accept; }
        }
        table inet dtun-hom {
            set addresses { type ipv4_addr; elements = { 192.0.2.7 }; }
        }
        table inet dtun-home2 {
            chain forward { type filter hook forward priority 0; policy accept; }
        }
    """
    router.run("nft", "-f", "-", text=others)
    before = router.run("nft", "--stateless", "--handle", "list", "ruleset")
    applied(router, NAT | GUARD, CLAMP, frozenset())
    assert router.run("nft", "--stateless", "--handle", "list", "ruleset") == before


def test_two_tunnels_on_one_host_have_a_table_each(way: tuple[Host, Host, Host]) -> None:
    _, router, _ = way
    applied(router, NAT)
    applied(router, CLAMP, table="dtun-office")
    applied(router, frozenset())
    assert rules(router) == {}
    assert list(rules(router, "dtun-office")) == ["clamp_forward"]


def test_a_killed_process_leaves_its_guard_to_the_next(way: tuple[Host, Host, Host]) -> None:
    _, router, _ = way

    def killed(filters: frozenset[Filter]) -> None:
        process = router.python("-c", HOLDER, code(filters), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=5)

    killed(GUARD)
    assert not pings(router, "192.0.2.2")
    # The next process replaces it ...
    killed(NAT)
    assert list(rules(router)) == ["nat_postrouting"]
    assert pings(router, "192.0.2.2")
    killed(GUARD)
    # ... or deletes it.
    applied(router, frozenset())
    assert rules(router) == {}
    assert pings(router, "192.0.2.2")


def test_a_thousand_tunnels_are_clamped_in_one_go(way: tuple[Host, Host, Host]) -> None:
    """More than the kernel's default for a send buffer; the last one asked for counts."""
    _, router, _ = way
    many = frozenset(ClampMss(f"dtun{number}", 1400) for number in range(1000))

    async def story() -> None:
        firewall = Firewall(TABLE)
        await asyncio.gather(firewall.apply(many), firewall.apply(NAT), firewall.apply(many))
        firewall.close()

    router.play(story)
    assert list(rules(router)) == ["clamp_forward"]
    assert elements(router, "clamped4") == {f"dtun{number}": 1360 for number in range(1000)}
    assert elements(router, "clamped6") == {f"dtun{number}": 1340 for number in range(1000)}


def test_devices_come_and_go_without_a_new_table(way: tuple[Host, Host, Host]) -> None:
    """A login on a server with many clients is a few elements. Changes by other programs are detected."""
    _, router, _ = way

    def handles() -> list[str]:
        listing = router.run("nft", "--handle", "list", "table", "inet", TABLE)
        return re.findall(r"(?:chain|set|map) .*# handle \d+", listing)

    async def story() -> None:
        firewall = Firewall(TABLE)
        await firewall.apply(NAT | CLAMP)
        before = handles()
        more: set[Filter] = {
            ClampMss("inside1", 1200),
            ClampMss("inside0", 1310),
            Masquerade("inside1", "outside0"),
        }
        await firewall.apply(NAT | more)
        assert elements(router, "clamped4") == {"inside0": 1270, "inside1": 1160}
        assert elements(router, "clamped6") == {"inside0": 1250, "inside1": 1140}
        await firewall.apply(NAT | {ClampMss("inside1", 1200)})
        assert elements(router, "clamped4") == {"inside1": 1160}
        assert handles() == before
        router.run("nft", "flush", "ruleset")
        await firewall.apply(NAT | CLAMP)
        assert elements(router, "clamped4") == {"inside0": 1260}
        await firewall.apply(frozenset())
        firewall.close()

    router.play(story)
    assert router.run("nft", "list", "tables") == ""


def test_a_removal_by_another_program_is_noticed(way: tuple[Host, Host, Host]) -> None:
    _, router, _ = way
    removals: list[bool] = []
    many: frozenset[Filter] = frozenset(ClampMss(f"dtun{number}", 1400) for number in range(1000))

    async def taken(command: str) -> None:
        await asyncio.to_thread(router.run, *command.split())
        await until(lambda: bool(removals), f"`{command}` to be noticed")
        assert len(removals) == 1
        removals.clear()

    async def story() -> None:
        firewall = Firewall(TABLE, lambda: removals.append(True))
        # Its own changes, and those of others in other tables, are not removals.
        for filters in (NAT, many | NAT, NAT | CLAMP, GUARD, many, frozenset[Filter](), NAT | CLAMP):
            await firewall.apply(filters)
        for table in ("inet dtun-hom", "ip dtun-home"):
            for action in ("add", "flush", "delete"):
                await asyncio.to_thread(router.run, "nft", action, "table", *table.split())
        assert removals == []
        for what in (
            "map inet dtun-home clamped4",
            "chain inet dtun-home clamp_forward",
            "table inet dtun-home",
        ):
            await taken(f"nft flush {what}")
            await firewall.apply(NAT | CLAMP)
            assert len(rules(router)["clamp_forward"]) == 7
            assert elements(router, "clamped4") == {"inside0": 1260}
        await taken("nft flush ruleset")
        firewall.close()

    router.play(story)
    applied(router, frozenset())


@pytest.mark.parametrize("filters", [frozenset({DropUnreachableIPv6()}), frozenset({DropOutsideTunnel(6)})])
def test_ipv6_that_routes_refuse_does_not_leave_by_a_device_that_is_insisted_on(
    way: tuple[Host, Host, Host], filters: frozenset[Filter]
) -> None:
    _, router, far = way
    far.ip("-6 address add 2001:db8:7::7/128 dev lo")
    router.ip("-6 route add default via 2001:db8::2")
    for half in ("::/1", "8000::/1"):
        router.ip(f"-6 route add unreachable {half} metric 4294901760")
    insisting = ("-I", "outside0")
    assert not pings(router, "2001:db8:7::7")
    assert pings(router, "2001:db8:7::7", *insisting)

    applied(router, filters)

    assert not pings(router, "2001:db8:7::7", *insisting)
    # The link itself goes on: neighbours, and how they are found and find us.
    router.ip("-6 neigh flush all")
    link_local = re.findall(r"inet6 (fe80\S+)/", far.ip("-6 address show dev eth0"))[0]
    assert pings(router, f"{link_local}%outside0")
    assert pings(router, "ff02::1%outside0")
    assert pings(router, "::1")
    assert pings(router, "192.0.2.2")


def test_ipv6_may_leave_to_allowed_networks_and_through_tunnels(way: tuple[Host, Host, Host]) -> None:
    _, router, far = way
    for address in ("2001:db8:7::7", "2001:db8:8::7", "2001:db8:9::7"):
        far.ip(f"-6 address add {address}/128 dev lo")
    router.ip("-6 route add default via 2001:db8::2")
    router.ip("link add elsewhere0 type veth peer name elsewhere1")
    router.ip("link set elsewhere1 up")
    router.ip("tuntap add dev tun7 mode tun")
    for device in ("elsewhere0", "tun7"):
        router.ip(f"link set {device} up")
        router.ip(f"-6 address add fd07:{len(device)}::1/64 dev {device} nodad")
    spared = (ip_network("2001:db8::/64"), ip_network("2001:db8:7::/48"), ip_network("2001:db8:8::/48"))
    applied(router, frozenset({DropOutsideTunnel(6, spared)}))

    assert pings(router, "2001:db8::2")
    assert pings(router, "2001:db8:7::7")
    assert pings(router, "2001:db8:8::7")
    assert not pings(router, "2001:db8:9::7"), "also without insisting"

    def counted(device: str) -> int:
        stats = json.loads(router.ip(f"-j -s link show dev {device}"))[0]["stats64"]["tx"]
        return int(stats["packets"]) + int(stats["dropped"])

    for device, leaves in (("elsewhere0", False), ("tun7", True)):
        before = counted(device)
        router.run("ping", "-n", "-c3", "-i0.1", "-W1", f"fd07:{len(device)}::2", check=False)
        assert (counted(device) - before >= 3) is leaves, device


def test_a_missing_capability_is_named(way: tuple[Host, Host, Host]) -> None:
    _, router, _ = way
    process = router.python(
        "-c",
        HOLDER,
        code(NAT),
        before=("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = process.communicate(timeout=20)
    assert output == ""
    assert errors.splitlines()[-1].endswith(f"FirewallError: {NOT_PERMITTED}")
    assert rules(router) == {}


def test_a_table_that_another_process_owns_is_left_alone(way: tuple[Host, Host, Host]) -> None:
    _, router, _ = way
    owner = router.popen("nft", "-i", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert owner.stdin is not None
    owner.stdin.write(f"add table inet {TABLE} {{ flags owner; }}\n")
    owner.stdin.flush()
    wait_for(lambda: "flags owner" in router.run("nft", "list", "ruleset"), "the table of another")
    with pytest.raises(FirewallError, match="belongs to another process"):
        applied(router, NAT)
    assert json.loads(router.run("nft", "-j", "list", "chains"))["nftables"][1:] == []


def test_settings_are_those_of_this_network_namespace(net: Topology) -> None:
    host, other = net.host("host"), net.host("other")
    net.cable(host, "eth0.100", other, "eth0", "192.0.2.1/24", "192.0.2.2/24")

    async def story() -> None:
        assert sysctl.read("net.ipv4.ip_forward") == "0"
        sysctl.write("net.ipv4.ip_forward", "1")
        sysctl.write("net.ipv4.conf.eth0.100.rp_filter", "2")
        sysctl.write("net.ipv6.conf.eth0/100.forwarding", "1")
        assert sysctl.read("net.ipv4.ip_forward") == "1"
        with pytest.raises(SysctlError, match="refuses this value"):
            sysctl.write("net.ipv4.ip_forward", "perhaps")
        with pytest.raises(SysctlError, match="there is no such setting"):
            sysctl.write("net.ipv4.conf.eth9.rp_filter", "1")

    host.play(story)
    values = host.run(
        "sysctl",
        "-n",
        "net.ipv4.ip_forward",
        "net.ipv4.conf.eth0/100.rp_filter",
        "net.ipv6.conf.eth0/100.forwarding",
    )
    assert values.split() == ["1", "2", "1"]
    assert other.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "0"
