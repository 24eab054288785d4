"""Is this stop the first half of a restart? A signal does not say; systemd does, by D-Bus (systemd1(5))."""

import asyncio
import logging
import os
from typing import Any

log = logging.getLogger("dtun.service")

TIMEOUT = 2.0
"""Seconds for systemd to answer. It waits for us at the same time."""

_NAME = "org.freedesktop.systemd1"
_MANAGER = "/org/freedesktop/systemd1"


async def restarts() -> bool:
    """Whether systemd stops this service in order to start it again. False if that cannot be found out."""
    if "INVOCATION_ID" not in os.environ or "NOTIFY_SOCKET" not in os.environ:
        return False
    try:
        async with asyncio.timeout(TIMEOUT):
            return await _job_type(os.getpid()) == "restart"
    except (OSError, TimeoutError, LookupError, ValueError) as error:
        log.info("cannot ask systemd whether this is a restart (%s); everything is removed", error)
        return False


async def _job_type(pid: int) -> str:
    """The type of the job that systemd has for the unit of this process; "" if it has none."""
    # Late: it is needed once, at the end.
    from jeepney import DBusAddress, new_method_call  # noqa: PLC0415
    from jeepney.io.asyncio import open_dbus_router  # noqa: PLC0415

    async with open_dbus_router(bus="SYSTEM") as router:

        async def call(path: str, interface: str, method: str, signature: str, *arguments: object) -> Any:
            address = DBusAddress(path, bus_name=_NAME, interface=interface)
            reply = await router.send_and_get_reply(new_method_call(address, method, signature, arguments))
            if reply.header.message_type.name != "method_return":
                raise LookupError(f"{method}: {reply.body}")
            return reply.body[0]

        async def get(path: str, interface: str, name: str) -> Any:
            _, value = await call(path, "org.freedesktop.DBus.Properties", "Get", "ss", interface, name)
            return value

        unit = await call(_MANAGER, f"{_NAME}.Manager", "GetUnitByPID", "u", pid)
        number, job = await get(unit, f"{_NAME}.Unit", "Job")
        return str(await get(job, f"{_NAME}.Job", "JobType")) if number else ""
