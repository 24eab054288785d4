"""What would keep a start from succeeding, apart from mistakes in the file: what this host has already."""

import asyncio
import socket
from collections.abc import Iterator, Mapping

from dtun.config import ANY_ID, ClientConfig, Hook, ServerConfig
from dtun.errors import ConfigError, DtunError, UnavailableError
from dtun.handover.fdstore import FdStore, NoFdStore, devices
from dtun.platform import read_only_kernel
from dtun.session import udp


def problems(section: ServerConfig | ClientConfig, fdstore: FdStore | None = None) -> Iterator[DtunError]:
    """What a start would fail with on this host now. What is in the store is dtun's own."""
    fdstore = fdstore or NoFdStore()
    own = devices(fdstore)
    names = [section.tun] if isinstance(section, ClientConfig) else list(_devices(section))
    for name in names:
        if name not in own and _exists(name):
            yield UnavailableError(
                f"tun: a device of the name {name} exists; stop the program that made it, or choose another name"
            )
    if isinstance(section, ServerConfig):
        yield from _ports(section, fdstore)
        for conflict in asyncio.run(_pool_conflicts(section, fdstore)):
            yield ConfigError(conflict)


def _ports(section: ServerConfig, fdstore: FdStore) -> Iterator[DtunError]:
    for endpoint in section.listen:
        if endpoint.port in fdstore.ports:
            continue
        try:
            udp.listen(str(endpoint.address), endpoint.port).close()
        except DtunError as error:
            yield error


async def _pool_conflicts(section: ServerConfig, fdstore: FdStore) -> list[str]:
    from dtun.server.identities import Identities  # noqa: PLC0415 - a client does not need it

    loop = asyncio.get_running_loop()
    identities = Identities(
        section, read_only_kernel({}), _run_nothing, loop, fdstore=fdstore, read_only=True
    )
    return await identities.pool_conflicts()


def _devices(section: ServerConfig) -> Iterator[str]:
    from dtun.server.identities import device_name  # noqa: PLC0415 - a client does not need it

    for name, entry in section.clients.items():
        if name != ANY_ID:
            yield entry.tun or device_name(name)


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


async def _run_nothing(hook: Hook, variables: Mapping[str, str], what: str) -> bool:
    del hook, variables, what
    return True
