"""Tries what a service may want to do, and writes as JSON what went well. Runs in a container: see test_sandbox.py."""

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def tun_device() -> None:
    os.close(os.open("/dev/net/tun", os.O_RDWR))


def other_device() -> None:
    os.close(os.open("/dev/kmsg", os.O_WRONLY))


def network_setting() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def link() -> None:
    """RTM_NEWLINK by way of the old ioctl: a change of the loopback's flags, to what they are."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        request = bytearray(b"lo".ljust(16, b"\0") + bytes(24))
        import fcntl

        fcntl.ioctl(asker, 0x8913, request)  # SIOCGIFFLAGS
        fcntl.ioctl(asker, 0x8914, request)  # SIOCSIFFLAGS


def low_port() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 99))


def packet_socket() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


def raw_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


def write_etc() -> None:
    Path("/etc/open/new").write_text("")


def write_usr() -> None:
    Path("/usr/open/new").write_text("")


def read_home() -> None:
    Path("/home/somebody/file").read_text()


def set_user_id_bit() -> None:
    path = Path("/tmp/suid")
    path.write_text("")
    path.chmod(0o4755)


def writable_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def other_processes() -> None:
    Path("/proc/1/status").read_text()


def cgroups() -> None:
    Path("/sys/fs/cgroup/probe").mkdir()
    Path("/sys/fs/cgroup/probe").rmdir()


def _call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


def user_namespace() -> None:
    _in_a_child(lambda: _call("unshare", CLONE_NEWUSER))


def network_namespace() -> None:
    _in_a_child(lambda: _call("unshare", CLONE_NEWNET))


def mount() -> None:
    _in_a_child(lambda: _call("mount", b"tmpfs", b"/mnt", b"tmpfs", 0, None))


def host_name() -> None:
    name = os.uname().nodename.encode()
    _call("sethostname", name, len(name))


def io_uring() -> None:
    _system_call(425, 0, None)


def fault_handler() -> None:
    """userfaultfd(2), which helps to win races inside the kernel."""
    _system_call({"x86_64": 323, "aarch64": 282}[os.uname().machine], 0)


def keyring() -> None:
    """keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING)"""
    _system_call({"x86_64": 250, "aarch64": 219}[os.uname().machine], 0, -3, 0)


def other_memory() -> None:
    """process_vm_readv(2)"""
    _system_call({"x86_64": 310, "aarch64": 270}[os.uname().machine], os.getpid(), None, 0, None, 0, 0)


def _system_call(number: int, *arguments: object) -> None:
    """A call with arguments that do nothing: it may fail, unless the kernel is forbidden to look at them."""
    ctypes.set_errno(0)
    libc.syscall(number, *arguments)
    if ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
        raise OSError(ctypes.get_errno(), f"system call {number}")


def _in_a_child(action: Callable[[], None]) -> None:
    """What would change this process for good."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1] != 0:
        raise OSError("denied")


def allowed(probe: Callable[[], None]) -> bool:
    try:
        probe()
    except OSError:
        return False
    return True


NEEDED = (tun_device, network_setting, link, low_port)
FORBIDDEN = (
    other_device,
    packet_socket,
    raw_socket,
    write_etc,
    write_usr,
    read_home,
    set_user_id_bit,
    writable_code,
    other_processes,
    cgroups,
    user_namespace,
    network_namespace,
    mount,
    host_name,
    io_uring,
    fault_handler,
    keyring,
    other_memory,
)

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({probe.__name__: allowed(probe) for probe in NEEDED + FORBIDDEN}))
