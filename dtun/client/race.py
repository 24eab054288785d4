"""Tries addresses of servers in order, and the next one beside those that are silent (RFC 8305, section 5)."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from itertools import takewhile
from typing import Any

from dtun.config import ServerName
from dtun.session import udp
from dtun.session.udp import SockAddr

STAGGER = 0.5
"""Seconds of silence after which the next address is tried as well."""

Attempt = Callable[[SockAddr, Callable[[], None]], Coroutine[Any, Any, str | None]]
"""Tries an address: returns None after success, else why not. Calls its argument whenever the address answers."""

LookUp = Callable[[ServerName], Coroutine[Any, Any, tuple[list[SockAddr], str | None]]]
"""Finds a server's addresses, in order of preference; and what went wrong, if anything."""


class Race:
    """One round through the servers, until an attempt succeeds. `reasons` are those of the failed ones."""

    def __init__(self, attempt: Attempt, look_up: LookUp, loop: asyncio.AbstractEventLoop) -> None:
        self.won = False
        self.reasons: list[str] = []
        self._attempt = attempt
        self._look_up = look_up
        self._loop = loop
        self._known: dict[ServerName, list[SockAddr]] = {}
        self._tried: set[SockAddr] = set()
        self._look_ups: dict[asyncio.Task[tuple[list[SockAddr], str | None]], ServerName] = {}
        self._running: dict[asyncio.Task[str | None], SockAddr] = {}
        self._quiet_since = loop.time()

    async def run_alone(self, address: SockAddr, hurry: asyncio.Event) -> None:
        """Try this address, and nothing else, until it has failed or succeeded or `hurry` is set."""
        self._start(address)
        waiting = self._loop.create_task(hurry.wait())
        try:
            await asyncio.wait({*self._running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        self._collect()

    async def run(self, servers: Sequence[ServerName]) -> None:
        """Try all addresses that were not tried before. Names are looked up side by side."""
        self._quiet_since = self._loop.time()
        if not self.won:
            self._look_ups = {self._loop.create_task(self._look_up(server)): server for server in servers}
        while not self.won:
            address = self._next(servers)
            wait = None if address is None else self._time_until_start(address, servers)
            if address is not None and wait == 0:
                self._start(address)
                continue
            if not self._running and not self._look_ups:
                return
            tasks = {*self._running, *self._look_ups}
            await asyncio.wait(tasks, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            self._collect()

    async def stop(self) -> None:
        """Abandon what still runs."""
        tasks = [*self._running, *self._look_ups]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _next(self, servers: Sequence[ServerName]) -> SockAddr | None:
        found = (address for server in servers for address in self._known.get(server, ()))
        return next((address for address in found if address not in self._tried), None)

    def _time_until_start(self, address: SockAddr, servers: Sequence[ServerName]) -> float:
        """Seconds: none if nothing that comes before this address may still succeed."""
        before = takewhile(lambda server: address not in self._known.get(server, ()), servers)
        if not self._running and not set(before).intersection(self._look_ups.values()):
            return 0
        return max(self._quiet_since + STAGGER - self._loop.time(), 0)

    def _start(self, address: SockAddr) -> None:
        self._tried.add(address)
        self._heard()
        self._running[self._loop.create_task(self._attempt(address, self._heard))] = address

    def _heard(self) -> None:
        self._quiet_since = self._loop.time()

    def _collect(self) -> None:
        """Take the results of what is done."""
        for look_up in [task for task in self._look_ups if task.done()]:
            server = self._look_ups.pop(look_up)
            self._known[server], problem = look_up.result()
            if problem is not None:
                self.reasons.append(problem)
        for attempt in [task for task in self._running if task.done()]:
            address = self._running.pop(attempt)
            failure = attempt.result()
            if failure is None:
                self.won = True
            else:
                self.reasons.append(f"{udp.show(address)}: {failure}")
                self._quiet_since = self._loop.time() - STAGGER  # the next one need not wait
