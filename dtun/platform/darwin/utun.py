"""TUN devices of macOS (net/if_utun.h): kernel controls that are a network interface for as long as they are open.

The device is called utun with a number, and nothing else. Each packet is behind four bytes, its address family:
dtun.dataplane.utun takes them off and puts them on.
"""

import contextlib
import itertools
import re
import socket
from collections.abc import Callable, Collection
from struct import Struct

from dtun.errors import PermissionDeniedError, UnavailableError
from dtun.platform.darwin import errors, ifreq, syscalls
from dtun.platform.darwin.constants import (
    AF_SYSTEM,
    CTLIOCGINFO,
    SO_RCVBUF,
    SO_SNDBUF,
    SOCK_DGRAM,
    SOL_SOCKET,
    SYSPROTO_CONTROL,
    UTUN_CONTROL_NAME,
    UTUN_OPT_IFNAME,
    UTUN_OPT_MAX_PENDING_PACKETS,
)

PENDING_PACKETS = 128
"""Packets that the kernel may have on their way to us. By default it is one, and each waits for a turn of its own."""

BUFFER_BYTES = 512 << 10
"""Each way, as the kernel reserves for utun; kern.ipc.maxsockbuf may allow less, and then it stays as it was."""

_NAME = re.compile(r"utun(0|[1-9][0-9]{0,5})")
_NAME_BYTES = 16
_U32 = Struct("<I")


class DarwinTun:
    """An open utun device: see `dtun.platform.interface.Tun`. It takes no super-packets."""

    vnet_header = False
    family_header = True

    def __init__(self, name: str, control: socket.socket, closed: Callable[["DarwinTun"], None]) -> None:
        self.name = name
        self.offloads: frozenset[str] = frozenset()
        self.enabled_offloads: frozenset[str] = frozenset()
        self._control = control
        self._closed = closed

    def fileno(self) -> int:
        """The non-blocking descriptor; -1 once closed."""
        return self._control.fileno()

    def enable_offloads(self, offloads: frozenset[str]) -> None:
        """See `Tun.enable_offloads`: there is nothing to hand out."""

    def close(self) -> None:
        """Remove the device, with its addresses and routes. May be called twice."""
        if self._control.fileno() >= 0:
            self._control.close()
            self._closed(self)


def open_utun(name: str, closed: Callable[[DarwinTun], None]) -> DarwinTun:
    """Make a device: `name` if that is "utun" with a number, else the next that is free.

    `closed` is told when it has been closed.

    Raises:
        UnavailableError: the number is taken, or the kernel has no utun.
        PermissionDeniedError: not root.
    """
    wanted = _NAME.fullmatch(name)
    try:
        control = syscalls.open_socket(AF_SYSTEM, SOCK_DGRAM, SYSPROTO_CONTROL)
    except OSError as error:
        raise _refused(name, error) from None
    try:
        answer = syscalls.ioctl(control, CTLIOCGINFO, ifreq.control(UTUN_CONTROL_NAME))
        number, _ = ifreq.CTL_INFO.unpack(answer)
        # Unit 1 is utun0; unit 0 stands for any.
        control.connect((number, int(wanted[1]) + 1 if wanted else 0))
        given = control.getsockopt(SYSPROTO_CONTROL, UTUN_OPT_IFNAME, _NAME_BYTES)
    except OSError as error:
        control.close()
        raise _refused(name, error) from None
    _enlarge(control)
    return DarwinTun(given.rstrip(b"\0").decode("ascii"), control, closed)


def name_for(wanted: str, taken: Collection[str]) -> str:
    """What `open_utun` would call a device, while there are those in `taken`."""
    if _NAME.fullmatch(wanted):
        return wanted
    return next(name for number in itertools.count() if (name := f"utun{number}") not in taken)


def _enlarge(control: socket.socket) -> None:
    """Room for bursts; where the kernel does not want that, it is as slow as it is."""
    with contextlib.suppress(OSError):
        control.setsockopt(SYSPROTO_CONTROL, UTUN_OPT_MAX_PENDING_PACKETS, _U32.pack(PENDING_PACKETS))
    for direction in (SO_RCVBUF, SO_SNDBUF):
        with contextlib.suppress(OSError):
            control.setsockopt(SOL_SOCKET, direction, BUFFER_BYTES)


def _refused(name: str, error: OSError) -> UnavailableError | PermissionDeniedError:
    match error.errno:
        case errors.EPERM | errors.EACCES:
            return PermissionDeniedError("may not make a utun device: run dtun as root")
        case errors.EBUSY:
            return UnavailableError(
                f"cannot make the device {name}: it is taken; choose another number, "
                "or leave out `tun` for the next that is free"
            )
        case errors.ENOENT:
            return UnavailableError("cannot make a utun device: this kernel has no utun")
    return UnavailableError(f"cannot make a utun device: {errors.words(error)}")
