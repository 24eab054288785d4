"""Single rtnetlink(7) requests for links, addresses and policy rules, by pyroute2."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dtun.network.state import NetDevice, PointToPoint, Rule
from dtun.platform.linux.netlink.sockets import ANSWER_TIME, device_index, port_of
from dtun.platform.linux.netlink.wire import FAMILIES, FIB_RULE_INVERT, ROUTE_PROTOCOL

# The TUN device's queue. Twice the default: a handshake may occupy the event loop for a few milliseconds, in which a
# fast sender must not lose packets.
TRANSMIT_QUEUE_PACKETS = 1000

# From linux/if_link.h and linux/if_addr.h.
IN6_ADDR_GEN_MODE_NONE = 1
IFA_F_NODAD = 0x02


class Requests:
    """One rtnetlink socket. Every method raises NetlinkError when the kernel refuses."""

    def __init__(self) -> None:
        # Without multicast groups, because an overflow of notifications would disturb requests. Strict checking makes
        # the kernel filter dumps.
        self._socket: Any = AsyncIPRoute(groups=0, strict_check=True)

    @property
    def port(self) -> int:
        """See `port_of`."""
        return port_of(self._socket.socket)

    def close(self) -> None:
        self._socket.close()

    async def check_permission(self) -> None:
        """Raises NetlinkError (EPERM) without CAP_NET_ADMIN in this network namespace. Changes nothing."""
        await self._ask(self._socket.link, "set", index=_index("lo"))

    async def set_up(self, link: NetDevice) -> None:
        index = _index(link.name)
        await self._ask(self._socket.link, "set", index=index, mtu=link.mtu, txqlen=TRANSMIT_QUEUE_PACKETS)
        await self._disable_link_local(index)
        await self._ask(self._socket.link, "set", index=index, state="up")

    async def set_down(self, link: NetDevice) -> None:
        await self._ask(self._socket.link, "set", index=_index(link.name), state="down")

    async def add_address(self, pair: PointToPoint) -> None:
        await self._ask(self._socket.addr, "add", **_pair(pair))

    async def replace_address(self, pair: PointToPoint, previous: PointToPoint) -> None:
        """Give our address another peer. IPv4 cannot replace it, but accepts both for a moment."""
        if pair.local.version == 6:
            await self._ask(self._socket.addr, "replace", **_pair(pair))
        else:
            await self.add_address(pair)
            await self.remove_address(previous)

    async def remove_address(self, pair: PointToPoint) -> None:
        await self._ask(self._socket.addr, "del", **_pair(pair))

    async def add_rule(self, rule: Rule) -> None:
        """Raises NetlinkError (EEXIST) if the same rule exists, whoever added it."""
        await self._ask(self._socket.rule, "add", **_rule(rule))

    async def remove_rule(self, rule: Rule) -> None:
        await self._ask(self._socket.rule, "del", **_rule(rule))

    async def _ask(self, request: Callable[..., Awaitable[Any]], *arguments: Any, **fields: Any) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIME):
                await request(*arguments, **fields)
        except TimeoutError:
            raise NetlinkError(errno.ETIMEDOUT, "the kernel does not answer") from None

    async def _disable_link_local(self, index: int) -> None:
        """Disable the automatic link-local address, and with it router solicitations to the only peer."""
        mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)]}
        try:
            await self._ask(
                self._socket.link, "set", index=index, IFLA_AF_SPEC={"attrs": [("AF_INET6", mode)]}
            )
        except NetlinkError as error:
            # A host without IPv6 (EAFNOSUPPORT) or a device with too small an MTU (EINVAL) adds none anyway.
            if error.code not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
                raise


def _index(device: str) -> int:
    index = device_index(device)
    if index is None:
        raise NetlinkError(errno.ENODEV, f"there is no device {device}")
    return index


def _pair(pair: PointToPoint) -> dict[str, Any]:
    request: dict[str, Any] = {
        "index": _index(pair.device),
        "family": FAMILIES[pair.local.version],
        "local": str(pair.local),
        "address": str(pair.peer),
        "prefixlen": pair.peer.max_prefixlen,
    }
    if pair.local.version == 6:
        # No other host is on the link, and a tentative address could not be used for a second.
        request["IFA_FLAGS"] = IFA_F_NODAD
    return request


def _rule(rule: Rule) -> dict[str, Any]:
    request: dict[str, Any] = {
        "family": FAMILIES[rule.version],
        "priority": rule.priority,
        "table": rule.table,
        "FRA_PROTOCOL": ROUTE_PROTOCOL,
    }
    if rule.unless_mark is not None:
        request |= {"fwmark": rule.unless_mark, "fwmask": 0xFFFFFFFF, "flags": FIB_RULE_INVERT}
    if rule.suppress_prefix_length is not None:
        request["FRA_SUPPRESS_PREFIXLEN"] = rule.suppress_prefix_length
    return request
