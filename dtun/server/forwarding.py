"""Makes the server's host a router for its clients: the kernel's switches, and NAT towards other networks.

The packet filter's rules name devices. With `masquerade: true` the uplink is the device of the default route, so the
rules change when that does.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from dtun.config import ServerConfig
from dtun.errors import DtunError
from dtun.network.plan import accept_ra
from dtun.network.state import Filter, Masquerade, NetworkState, Sysctl
from dtun.platform.desired import DesiredState, Rejections
from dtun.platform.interface import Kernel

log = logging.getLogger("dtun.server")

OWNER = "forwarding"

IPV4_FORWARDING = Sysctl("net.ipv4.ip_forward", "1")
IPV6_FORWARDING = Sysctl("net.ipv6.conf.all.forwarding", "1")

NO_UPLINK = "masquerade: this host has no default route now, so its clients reach only this host"


class Forwarding:
    """Forwarding between the clients' devices and the rest of the host."""

    def __init__(self, kernel: Kernel, desired_state: DesiredState) -> None:
        self._kernel = kernel
        self._desired_state = desired_state
        self._rejections = Rejections(OWNER)
        self._obstacles: list[str] = []
        self._lock = asyncio.Lock()
        self._uplinks: tuple[str, ...] = ()
        self._stranded = False
        self._announced = False

    @property
    def warnings(self) -> list[str]:
        """What does not work, as lines for a person."""
        return [*([NO_UPLINK] if self._stranded else []), *self._rejections.lines, *self._obstacles]

    @property
    def by_host(self) -> bool:
        """Whether the host forwards IPv4 packets now, whoever has told it to."""
        return self._kernel.has(IPV4_FORWARDING)

    @property
    def rejections(self) -> list[str]:
        """What the kernel refuses of it, as lines for a person."""
        return self._rejections.lines

    async def refresh(self, config: ServerConfig, devices: Iterable[str]) -> None:
        """The host's network has changed: find the way out again. An error is logged."""
        try:
            await self.apply(config, devices)
        except DtunError as error:
            log.warning("forwarding: %s", error)

    async def apply(self, config: ServerConfig, devices: Iterable[str]) -> None:
        """Have the host forward for these devices, as the configuration says.

        Raises:
            DtunError: the kernel does not answer.
        """
        async with self._lock:
            if not config.forwards:
                await self._desired_state.set(OWNER, NetworkState())
                self._rejections.replace([])
                self._obstacles = []
                self._stranded = self._announced = False
                return
            if not self._announced:
                self._announced = True
                log.info("this host forwards packets of the clients (%s)", _switches(config))
            await self._refresh_uplinks(config)
            devices = list(devices)
            filters: frozenset[Filter] = frozenset(
                Masquerade(device, uplink)
                for device in devices
                for uplink in self._uplinks
                if device != uplink
            )
            sysctls = _sysctls(config)
            if IPV6_FORWARDING in sysctls:
                sysctls |= set(map(accept_ra, await self._kernel.advertised_devices()))
            refused = await self._desired_state.set(OWNER, NetworkState(sysctls=sysctls, filters=filters))
            self._rejections.replace(refused)
            await self._look_for_obstacles(config, devices)

    async def _look_for_obstacles(self, config: ServerConfig, devices: Sequence[str]) -> None:
        pools = [pool for pool in (config.pool, config.pool6) if pool is not None]
        known, self._obstacles = self._obstacles, await self._kernel.forwarding_obstacles(devices, pools)
        for obstacle in self._obstacles:
            if obstacle not in known:
                log.warning("forwarding: %s", obstacle)

    async def drop(self) -> None:
        """Undo what `apply` did."""
        await self._desired_state.remove(OWNER)

    async def _refresh_uplinks(self, config: ServerConfig) -> None:
        found = await self._find_uplinks(config)
        stranded = config.masquerade is True and not found
        if stranded and not self._stranded:
            log.warning(NO_UPLINK)
        elif found and found != self._uplinks:
            log.info("the clients' packets get this host's address on %s", ", ".join(found))
        self._uplinks, self._stranded = found, stranded

    async def _find_uplinks(self, config: ServerConfig) -> tuple[str, ...]:
        if config.masquerade is True:
            hops = [await self._kernel.default_hop(4)]
            if config.pool6 is not None:
                hops.append(await self._kernel.default_hop(6))
            return tuple(dict.fromkeys(hop.device for hop in hops if hop is not None))
        return tuple(config.masquerade or ())


def _sysctls(config: ServerConfig) -> frozenset[Sysctl]:
    return frozenset({IPV4_FORWARDING} if config.pool6 is None else {IPV4_FORWARDING, IPV6_FORWARDING})


def _switches(config: ServerConfig) -> str:
    return ", ".join(sorted(f"{switch.name}={switch.value}" for switch in _sysctls(config)))
