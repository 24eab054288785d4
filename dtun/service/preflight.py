"""What would keep a start from succeeding, apart from mistakes in the file: ports and devices that are taken."""

import socket
from collections.abc import Container, Iterator

from dtun.config import ANY_ID, ClientConfig, ServerConfig
from dtun.errors import DtunError, UnavailableError
from dtun.session import udp


def problems(
    section: ServerConfig | ClientConfig, *, ports: Container[int] = (), devices: Container[str] = ()
) -> Iterator[DtunError]:
    """What a start would fail with on this host. `ports` and `devices` are dtun's own already."""
    if isinstance(section, ServerConfig):
        for endpoint in section.listen:
            if endpoint.port in ports:
                continue
            try:
                udp.listen(str(endpoint.address), endpoint.port).close()
            except DtunError as error:
                yield error
    for name in _devices(section):
        if name not in devices and _exists(name):
            yield UnavailableError(
                f"tun: a device of the name {name} exists; stop the program that made it, or choose another name"
            )


def _devices(section: ServerConfig | ClientConfig) -> Iterator[str]:
    if isinstance(section, ClientConfig):
        yield section.tun
        return
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
