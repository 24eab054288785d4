"""TUN devices of macOS (net/if_utun.h): a kernel control socket is a network interface for as long as it is open.

    ctl_info (100)    | id u32 0 | name 4 |

The device's name is "utun" with a number. Each packet has four bytes in front, its address family;
dtun.dataplane.device adds and removes them.
"""

import contextlib
import itertools
import re
import socket
from collections.abc import Callable, Collection
from struct import Struct

from dtun.errors import PermissionDeniedError, UnavailableError
from dtun.platform.darwin import errors, syscalls
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
"""Packets that the kernel queues for us. The default is one: each would wait until the one before has been read."""

BUFFER_BYTES = 512 << 10
"""In each direction, as the kernel reserves for utun. If kern.ipc.maxsockbuf is less, the default stays."""

_NAME = re.compile(r"utun(0|[1-9][0-9]{0,5})")
_NAME_BYTES = 16
_U32 = Struct("<I")

CTL_INFO = Struct("<I96s")


class DarwinTun:
    """An open utun device, see `dtun.platform.interface.Tun`. It has no offloads."""

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
        """See `Tun.enable_offloads`: there are none."""

    def works(self) -> bool:
        """See `Tun.works`."""
        return self.fileno() >= 0

    def watch(self, lost: Callable[[], None], renewed: Callable[[], None]) -> None:
        """See `Tun.watch`: other programs can neither remove nor rename a utun device."""

    def close(self) -> None:
        """Remove the device, with its addresses and routes. May be called twice."""
        if self._control.fileno() >= 0:
            self._control.close()
            self._closed(self)


def open_tun(name: str, closed: Callable[[DarwinTun], None]) -> DarwinTun:
    """Create a device: `name` if that is "utun" with a number, else the next free one.

    `closed` is called when the device is closed.

    Raises:
        UnavailableError: the number is in use, or the kernel has no utun.
        PermissionDeniedError: not root.
    """
    wanted = _NAME.fullmatch(name)
    try:
        control = syscalls.open_socket(AF_SYSTEM, SOCK_DGRAM, SYSPROTO_CONTROL)
    except OSError as error:
        raise _refused(name, error) from None
    try:
        answer = syscalls.ioctl(control, CTLIOCGINFO, control_request(UTUN_CONTROL_NAME))
        number, _ = CTL_INFO.unpack(answer)
        # Unit 1 is utun0; unit 0 means the next free one.
        control.connect((number, int(wanted[1]) + 1 if wanted else 0))
        given = control.getsockopt(SYSPROTO_CONTROL, UTUN_OPT_IFNAME, _NAME_BYTES)
    except OSError as error:
        control.close()
        raise _refused(name, error) from None
    _enlarge(control)
    return DarwinTun(given.rstrip(b"\0").decode("ascii"), control, closed)


def control_request(name: str) -> bytes:
    """For CTLIOCGINFO, which returns the id of the kernel control with this name."""
    return CTL_INFO.pack(0, name.encode())


def name_for(wanted: str, taken: Collection[str]) -> str:
    """The name that `open_tun` would give a device while those in `taken` exist."""
    if _NAME.fullmatch(wanted):
        return wanted
    return next(name for number in itertools.count() if (name := f"utun{number}") not in taken)


def _enlarge(control: socket.socket) -> None:
    """Make room for bursts, where the kernel allows it."""
    with contextlib.suppress(OSError):
        control.setsockopt(SYSPROTO_CONTROL, UTUN_OPT_MAX_PENDING_PACKETS, _U32.pack(PENDING_PACKETS))
    for direction in (SO_RCVBUF, SO_SNDBUF):
        with contextlib.suppress(OSError):
            control.setsockopt(SOL_SOCKET, direction, BUFFER_BYTES)


def _refused(name: str, error: OSError) -> UnavailableError | PermissionDeniedError:
    match error.errno:
        case errors.EPERM | errors.EACCES:
            return PermissionDeniedError("may not create a utun device: run dtun as root")
        case errors.EBUSY:
            return UnavailableError(
                f"cannot create the device {name}: it is in use; choose another number, "
                "or leave out `tun` for the next free one"
            )
        case errors.ENOENT:
            return UnavailableError("cannot create a utun device: this kernel has no utun")
    return UnavailableError(f"cannot create a utun device: {errors.reason(error)}")
