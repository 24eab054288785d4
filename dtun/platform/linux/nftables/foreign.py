"""Finds the firewalls of other programs that drop what this host forwards, in nf_tables, where iptables-nft is as well.

Which packets a rule lets through is not computed. A table that names a device or a network of dtun's in any rule was
set up with the tunnel in mind, and counts as no obstacle.

Attributes by number (linux/netfilter/nf_tables.h):

    chain   1 table, 3 name, 4 hook (1 number, 2 priority), 5 policy
    rule    1 table, 2 chain, 4 expressions
    cmp     3 value
    meta    2 key
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from dtun.network.state import Network
from dtun.platform.linux.netlink.sockets import NETLINK_NETFILTER, open_socket
from dtun.platform.linux.netlink.wire import (
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTATTR,
    aligned,
    attributes,
    message,
    messages,
    text,
)
from dtun.platform.linux.nftables.expressions import META_IIFNAME, META_OIFNAME
from dtun.platform.linux.nftables.wire import NFNL_SUBSYS_NFTABLES

_NFT_MSG_GETCHAIN, _NFT_MSG_GETRULE = 4, 7
_NFGEN_BYTES: Final = 4
_FORWARD: Final = 2
_OWN: Final = "dtun-"
_DROP: Final = 0
_FAMILIES: Final = {1: "inet", 2: "ip", 10: "ip6"}
_VERSIONS: Final = {1: (4, 6), 2: (4,), 10: (6,)}
_DATAGRAM_BYTES: Final = 1 << 16
_SILENT: Final = frozenset({"counter", "log", "comment"})


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A chain that drops forwarded packets; `chains` are the names of all chains of its table."""

    family: str
    table: str
    chain: str
    chains: frozenset[str] = frozenset()


def read_obstacles(devices: Collection[str], networks: Collection[Network]) -> list[Obstacle]:
    """Return the chains of other programs' tables that drop what is forwarded from or to these devices.

    Without the right to read the packet filter, none.
    """
    try:
        chains = _dump(_NFT_MSG_GETCHAIN)
        # Most hosts have no such chain, and some have thousands of rules.
        if not any(_is_forward(body) for body in chains):
            return []
        return obstacles(chains, _dump(_NFT_MSG_GETRULE), devices, networks)
    except OSError:
        return []


def obstacles(
    chains: Iterable[bytes],
    rules: Iterable[bytes],
    devices: Collection[str],
    networks: Collection[Network],
) -> list[Obstacle]:
    """See `read_obstacles`; `chains` and `rules` are the bodies of a dump. Pure."""
    chains = list(chains)
    names: dict[tuple[int, str], set[str]] = {}
    for body in chains:
        found = attributes(memoryview(body), _NFGEN_BYTES)
        names.setdefault((body[0], text(found.get(1))), set()).add(text(found.get(3)))
    minded: set[tuple[int, str]] = set()
    last: dict[tuple[int, str, str], list[tuple[str, memoryview]]] = {}
    for body in rules:
        found = attributes(memoryview(body), _NFGEN_BYTES)
        table, chain = text(found.get(1)), text(found.get(2))
        expressions = list(_expressions(found.get(4, memoryview(b""))))
        last[body[0], table, chain] = expressions
        if any(_names(one, devices, networks) for one in expressions) or _may_name(expressions):
            minded.add((body[0], table))
    versions = {network.version for network in networks}
    result = []
    for body in chains:
        found = attributes(memoryview(body), _NFGEN_BYTES)
        family, table, chain = body[0], text(found.get(1)), text(found.get(3))
        policy = found.get(5)
        drops = (policy is not None and int.from_bytes(policy, "big") == _DROP) or _drops_all(
            last.get((family, table, chain), [])
        )
        if (
            _is_forward(body)
            and drops
            and versions.intersection(_VERSIONS.get(family, ()))
            and not table.startswith(_OWN)
            and (family, table) not in minded
        ):
            result.append(Obstacle(_FAMILIES[family], table, chain, frozenset(names[family, table])))
    return result


def explain(obstacle: Obstacle, devices: Collection[str]) -> str:
    """Return a sentence with the lines that help."""
    only = next(iter(devices)) if len(devices) == 1 else ""
    chain = f"{obstacle.family} {obstacle.table} {obstacle.chain}"
    if obstacle.table == "firewalld":
        name = only or "DEVICE"
        help_ = (
            f"`firewall-cmd --permanent --zone=trusted --add-interface={name}`, then `firewall-cmd --reload`"
        )
    elif any(name.startswith("ufw-") for name in obstacle.chains):
        name = only or "DEVICE"
        help_ = f"`ufw route allow in on {name}` and `ufw route allow out on {name}`"
    elif "DOCKER-USER" in obstacle.chains:
        command = "iptables" if obstacle.family == "ip" else "ip6tables"
        help_ = " and ".join(
            f"`{command} -I DOCKER-USER {way} {only or 'dtun+'} -j ACCEPT`" for way in ("-i", "-o")
        )
    else:
        help_ = " and ".join(
            f"`nft insert rule {chain} {way} {only or 'dtun*'} accept`" for way in ("iifname", "oifname")
        )
    return f"another firewall on this host drops forwarded packets ({chain}) and has no rule for the tunnel; {help_}"


def _is_forward(body: bytes) -> bool:
    hook = attributes(memoryview(body), _NFGEN_BYTES).get(4)
    number = attributes(hook).get(1) if hook is not None else None
    return body[0] in _FAMILIES and number is not None and int.from_bytes(number, "big") == _FORWARD


def _expressions(view: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Yield name and attributes of each expression of a rule, in order."""
    start = 0
    while len(view) - start >= RTATTR.size:
        length, _ = RTATTR.unpack_from(view, start)
        if length < RTATTR.size:
            return
        found = attributes(view[start + RTATTR.size : start + length])
        yield text(found.get(1)), found.get(2, memoryview(b""))
        start += aligned(length)


def _names(
    expression: tuple[str, memoryview], devices: Collection[str], networks: Collection[Network]
) -> bool:
    """Whether this compares with a device of ours, or the beginning of its name, or with a network of ours."""
    kind, data = expression
    value = attributes(attributes(data).get(3, memoryview(b""))).get(1) if kind == "cmp" else None
    if value is None:
        return False
    raw = bytes(value)
    plain = raw.rstrip(b"\0")
    if len(plain) >= 3 and any(
        device.encode() == plain or (len(plain) == len(raw) and device.encode().startswith(plain))
        for device in devices
    ):
        return True
    return len(raw) >= 2 and any(
        raw in (packed, packed[: network.prefixlen // 8])
        for network in networks
        for packed in (network.network_address.packed,)
    )


def _may_name(expressions: Sequence[tuple[str, memoryview]]) -> bool:
    """Whether a rule has a set of devices, which is not looked into."""
    return any(
        after[0] == "lookup" and before[0] == "meta" and _key(before[1]) in (META_IIFNAME, META_OIFNAME)
        for before, after in pairwise(expressions)
    )


def _key(meta: memoryview) -> int:
    return int.from_bytes(attributes(meta).get(2, memoryview(b"")), "big")


def _drops_all(expressions: Iterable[tuple[str, memoryview]]) -> bool:
    """Whether a rule drops or rejects without a condition."""
    rest = [one for one in expressions if one[0] not in _SILENT]
    if len(rest) != 1:
        return False
    kind, data = rest[0]
    if kind == "reject":
        return True
    verdict = _verdict(attributes(data)) if kind == "immediate" else None
    return verdict == _DROP


def _verdict(immediate: Mapping[int, memoryview]) -> int | None:
    """The code of an immediate's verdict; None if it is a value."""
    verdict = attributes(immediate.get(2, memoryview(b""))).get(2)
    code = attributes(verdict).get(1) if verdict is not None else None
    return None if code is None else int.from_bytes(code, "big")


def _dump(kind: int) -> list[bytes]:
    """The bodies of all objects of a kind, of all families. The kernel answers at once, as it is read.

    Raises:
        OSError: the kernel refuses.
    """
    found: list[bytes] = []
    with open_socket(NETLINK_NETFILTER) as netlink:
        netlink.bind((0, 0))
        request = message(
            NFNL_SUBSYS_NFTABLES << 8 | kind, NLM_F_REQUEST | NLM_F_DUMP, 1, bytes(_NFGEN_BYTES)
        )
        netlink.sendto(request, (0, 0))
        while True:
            for reply, _, _, _, body in messages(netlink.recv(_DATAGRAM_BYTES)):
                if reply in (NLMSG_DONE, NLMSG_ERROR):
                    return found
                found.append(bytes(body))
