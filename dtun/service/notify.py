"""Tell the service manager how we are (sd_notify(3)); silence where there is none."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


def notify(*assignments: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send for example "READY=1", "STATUS=2 clients". Returns whether anybody was told; never raises."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract namespace
    message = "\n".join(assignment.replace("\n", " ") for assignment in assignments)
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # A manager that does not read must not hold up the tunnel.
        sender.setblocking(False)
        sender.sendto(message.encode(errors="replace"), address)
        return True
    return False


def ready(status: str) -> bool:
    return notify("READY=1", f"STATUS={status}")


def reloading() -> bool:
    """A reload has begun, as Type=notify-reload wants to hear it (sd_notify(3)); `ready` says that it is over."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def status(text: str) -> bool:
    return notify(f"STATUS={text}")


def stopping() -> bool:
    return notify("STOPPING=1")


def alive() -> bool:
    return notify("WATCHDOG=1")


def watchdog_interval(environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two calls of `alive`, half of what the manager waits; None: it does not watch us."""
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", ""))
        watched = int(environment.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    return microseconds / 2_000_000 if microseconds > 0 and watched == os.getpid() else None
