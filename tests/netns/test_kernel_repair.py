"""What other programs remove of ours is restored without another apply."""

import asyncio
import logging
import re
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import kernels
import pytest
from kernels import PIN, TUN, into, opened, state, tunnel, until
from topology import Host, Topology

from dtun.handover.session_store import SessionStore
from dtun.network.state import (
    ClampMss,
    DropOtherTrafficToServer,
    DropOutsideTunnel,
    Masquerade,
    NetworkState,
    Route,
    Rule,
    Sysctl,
)
from dtun.platform import repair
from dtun.platform.linux.netlink.removals import RemovalWatch
from tests.unit.fakes import FakeFdStore

host, runtime = kernels.host, kernels.runtime

TABLE = 7217
WANTED = state(
    PIN,
    into("10.1.0.0/16"),
    into("fd01::/48"),
    Route(ip_network("0.0.0.0/1"), metric=0xFFFF0000, kind="unreachable"),
    Route(ip_network("::/0"), table=TABLE, kind="throw"),
    Route(ip_network("0.0.0.0/0"), TUN, table=TABLE),
) | NetworkState(rules=frozenset({Rule(4, 7217, TABLE, unless_mark=5), Rule(6, 7217, TABLE)}))


def seen(host: Host) -> str:
    """All that is ours, as ip(8) shows it, but for the device's index."""
    looks = (
        "-4 route show table all proto 217",
        "-6 route show table all proto 217",
        "-4 rule",
        "-6 rule",
        f"address show dev {TUN}",
    )
    shown = "\n".join("\n".join(sorted(host.ip(look).splitlines())) for look in looks)
    return re.sub(rf"\d+: {TUN}", TUN, shown)


@pytest.mark.parametrize(
    "theft",
    [
        "-4 route flush table main proto 217",
        "-6 route flush table main proto 217",
        "-4 route flush table all proto 217",
        "route del 203.0.113.5",
        "route del unreachable 0.0.0.0/1",
        "-6 route del throw ::/0 table 7217",
        f"-6 route del fd01::/48 dev {TUN}",
        "rule del priority 7217",
        "-6 rule del priority 7217",
        f"address del 10.86.0.1 peer 10.86.0.2 dev {TUN}",
        f"address del fd86::1 peer fd86::2 dev {TUN}",
        f"link set {TUN} down",
        "link set eth0 down",
    ],
)
def test_what_is_taken_comes_back(host: Host, runtime: Path, theft: str) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            await linux.apply(WANTED)
            before = seen(host)
            for arguments in (theft, "link set eth0 up"):
                host.ip(arguments)
            await until(lambda: seen(host) == before, f"the repair after `ip {theft}`")
            assert await linux.apply(WANTED) == []

    host.play(story)


@pytest.mark.parametrize(
    "theft",
    [
        f"link del {TUN}",
        f"link set {TUN} down; link set {TUN} name mine; link set mine up",
        f"link set {TUN} netns ELSEWHERE",
    ],
)
def test_a_device_that_is_taken_comes_back(
    net: Topology, host: Host, runtime: Path, theft: str, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = net.host("elsewhere").namespace

    async def story() -> None:
        async with tunnel(runtime) as (linux, tun):
            told: list[str] = []
            tun.watch(lambda: told.append("lost"), lambda: told.append("renewed"))
            await linux.apply(WANTED)
            tun.enable_offloads(tun.offloads)
            before, descriptor = seen(host), tun.fileno()
            assert tun.works()
            for arguments in theft.split("; "):
                await asyncio.to_thread(host.ip, arguments.replace("ELSEWHERE", elsewhere))
            await until(lambda: tun.works() and seen(host) == before, f"the repair after `ip {theft}`")
            assert tun.fileno() == descriptor
            assert told[-2:] == ["lost", "renewed"]
            assert await linux.apply(WANTED) == []
            assert f"restored after removal by another program: link {TUN} mtu 1400" in caplog.text
            assert host.ip("-o link show type tun").count("\n") == 1, "nothing is left of the other one"

    host.play(story)


def test_a_name_that_is_taken_meanwhile_is_waited_for(
    host: Host, runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, tun):
            await linux.apply(WANTED)
            before = seen(host)
            for arguments in (f"link del {TUN}", f"tuntap add {TUN} mode tun", f"link set {TUN} up"):
                host.ip(arguments)
            text = f"cannot create the TUN device {TUN}: a device of that name exists"
            await until(lambda: text in caplog.text, "the warning")
            assert not tun.works(), "the other program's device is not ours"
            await linux.apply(WANTED)
            assert "10.86" not in host.ip(f"address show dev {TUN}")
            host.ip(f"link del {TUN}")
            await until(lambda: tun.works() and seen(host) == before, "the repair")

    host.play(story)


@pytest.mark.parametrize(
    "theft", [f"link del {TUN}", f"link set {TUN} name mine", f"link set {TUN} netns ELSEWHERE"]
)
def test_a_kept_device_that_is_gone_is_made_anew_at_the_start(
    net: Topology, host: Host, runtime: Path, theft: str
) -> None:
    elsewhere = net.host("elsewhere").namespace
    kept = FakeFdStore()

    async def story() -> None:
        async with opened(runtime) as linux:
            SessionStore(kept, TUN).open_device(linux)[0].close()  # the process ends, the store has a copy
        host.ip(theft.replace("ELSEWHERE", elsewhere))
        kept.start_successor()
        async with opened(runtime) as linux:
            tun, known = SessionStore(kept, TUN).open_device(linux)
            assert not known
            await linux.apply(WANTED)
            assert tun.works()
            tun.close()
            kept.start_successor()
            tun, known = SessionStore(kept, TUN).open_device(linux)
            tun.close()
            assert known, "that one is kept now"
        kept.close()
        assert host.ip("-o link show type tun") == ""

    host.play(story)


FILTERING = NetworkState(
    sysctls=frozenset({Sysctl("net.ipv4.ip_forward", "1"), Sysctl("net.ipv6.conf.all.forwarding", "1")}),
    filters=frozenset(
        {
            Masquerade(TUN, "eth0"),
            ClampMss(TUN, 1400),
            DropOtherTrafficToServer(ip_address("203.0.113.5"), 443),
            DropOutsideTunnel(6),
        }
    ),
)


@pytest.mark.parametrize(
    "theft",
    [
        "nft flush ruleset",
        "nft delete table inet dtun-demo",
        "nft flush table inet dtun-demo",
        "nft flush chain inet dtun-demo guard_output",
        "nft flush set inet dtun-demo masqueraded",
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "sysctl -q --load=-",
    ],
)
def test_filters_and_settings_come_back(
    host: Host, runtime: Path, theft: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="dtun.platform.repair")

    def look() -> str:
        switches = host.run("sysctl", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
        return switches + host.run("nft", "list", "ruleset")

    before = look()

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            await linux.apply(state() | FILTERING)
            wanted = look()
            settings = "net.ipv4.ip_forward = 0\nnet.ipv6.conf.all.forwarding = 0\n"
            await asyncio.to_thread(host.run, *theft.split(), text=settings)
            await until(lambda: look() == wanted and bool(caplog.messages), f"the repair after `{theft}`")
            assert await linux.apply(state() | FILTERING) == []

    host.play(story)
    assert caplog.messages[0].startswith("restored after removal by another program: "), caplog.messages
    assert look() == before


def test_what_cannot_be_restored_is_retried(
    host: Host, runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with opened(runtime) as linux:
            await linux.apply(kernels.only(PIN))
            host.ip("link set eth0 down")
            await until(lambda: "cannot restore" in caplog.text, "the repair to fail")
            host.ip("link set eth0 up")
            await until(lambda: kernels.routes(host) != set(), "the pin")

    host.play(story)


def test_one_line_in_the_log_says_what_was_restored(
    host: Host, runtime: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "FIRST_DELAY", 0.1)
    caplog.set_level(logging.WARNING, logger="dtun.platform.repair")

    async def story() -> None:
        async with tunnel(runtime) as (linux, _):
            await linux.apply(WANTED)
            before = seen(host)
            for _ in range(3):
                host.ip("route del 203.0.113.5")
                await until(lambda: seen(host) == before, "the pin")

    host.play(story)
    assert caplog.messages == [
        "restored after removal by another program: route 203.0.113.5/32 via 192.0.2.1 dev eth0"
    ]


def test_our_own_work_is_no_reason_to_look(
    host: Host, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with tunnel(runtime) as (linux, tun):
            suspicions: list[bytes] = []
            update = RemovalWatch.update

            def spy(watch: RemovalWatch, data: bytes) -> bool:
                if update(watch, data):
                    suspicions.append(data)
                return False

            monkeypatch.setattr(RemovalWatch, "update", spy)
            await linux.apply(WANTED)
            await linux.apply(state(into("10.1.0.0/16"), mtu=1300))
            await linux.apply(WANTED)
            tun.close()
            await linux.apply(NetworkState())
            await hears_something(linux.watch, host)
            assert len(suspicions) == 0

    host.play(story)


async def hears_something(watch: Callable[[Callable[[], None]], None], host: Host) -> None:
    """Until the monitor has read all that came before."""
    heard = asyncio.Event()
    watch(heard.set)
    host.ip("route add default via 192.0.2.9 metric 77")
    await asyncio.wait_for(heard.wait(), 10)


def test_what_is_wanted_no_more_is_not_put_back(host: Host, runtime: Path) -> None:
    async def story() -> None:
        async with opened(runtime) as linux:
            await linux.apply(NetworkState(routes=frozenset({PIN})))
            other = Route(ip_network("203.0.113.6/32"), "eth0", ip_address("192.0.2.1"))
            host.ip("route flush proto 217")
            await linux.apply(NetworkState(routes=frozenset({other})))
            await until(lambda: kernels.routes(host) == {"203.0.113.6 via 192.0.2.1 dev eth0 onlink"}, "it")
            assert kernels.journaled(runtime) == {other}

    host.play(story)


def test_ten_thousand_routes_that_were_flushed_come_back(host: Host, runtime: Path) -> None:
    wanted = frozenset(
        Route(ip_network((0x0B000000 + n * 256, 24)), "eth0", kernels.GATEWAY) for n in range(10_000)
    )

    async def story() -> None:
        async with opened(runtime) as linux:
            await linux.apply(NetworkState(routes=wanted))
            await asyncio.to_thread(host.ip, "route flush proto 217")
            await until(
                lambda: host.ip("route show proto 217").count("\n") == len(wanted), "all of the routes"
            )

    host.play(story)
