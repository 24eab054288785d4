"""asyncio's event loop, but with readers and writers called straight from epoll.

Why: docs/decisions/0005-event-loop.md.
"""

import asyncio
import select
import selectors
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, Protocol, TypeVarTuple

from dtun.platform.linux.eventloop.timer import Timer

assert sys.platform == "linux"  # noqa: S101 - for type checkers on systems without epoll

_EVENTS_AT_ONCE = 64

_Arguments = TypeVarTuple("_Arguments")
_Call = Callable[[], object]


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


_File = int | _HasDescriptor


class DirectLoop(asyncio.SelectorEventLoop):
    """Calls readers and writers before everything else that is due in a turn. Linux only.

    asyncio's own part of a turn runs when a callback has scheduled something, or a timer is due.
    """

    def __init__(self) -> None:
        self._direct = _DirectSelector(self._failed)
        super().__init__(self._direct)

    def add_reader(self, fd: _File, callback: Callable[[*_Arguments], Any], *args: *_Arguments) -> None:
        self._direct.watch(fd, select.EPOLLIN, partial(callback, *args) if args else callback)

    def add_writer(self, fd: _File, callback: Callable[[*_Arguments], Any], *args: *_Arguments) -> None:
        self._direct.watch(fd, select.EPOLLOUT, partial(callback, *args) if args else callback)

    # `sock_recv` and similar methods register with asyncio's selector directly, but unregister by these two.
    def remove_reader(self, fd: _File) -> bool:
        return self._direct.unwatch(fd, select.EPOLLIN) or super().remove_reader(fd)

    def remove_writer(self, fd: _File) -> bool:
        return self._direct.unwatch(fd, select.EPOLLOUT) or super().remove_writer(fd)

    def call_soon(
        self, callback: Callable[[*_Arguments], object], *args: *_Arguments, context: Context | None = None
    ) -> asyncio.Handle:
        self._direct.asked = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self._direct.asked = True
        return super().call_at(when, callback, *args, context=context)

    def stop(self) -> None:
        self._direct.asked = True
        super().stop()

    def _failed(self, callback: _Call, error: Exception) -> None:
        self.call_exception_handler({"message": f"Exception in callback {callback!r}", "exception": error})


class _DirectSelector(selectors.BaseSelector):
    """An epoll with the descriptors of `watch`, of asyncio's own selector and of a timer.

    `asked`: asyncio has something to do.
    """

    def __init__(self, failed: Callable[[_Call, Exception], None]) -> None:
        self.asked = False
        self._failed = failed
        self._asyncio = selectors.EpollSelector()
        self._ready: list[tuple[selectors.SelectorKey, int]] = []
        self._epoll = select.epoll()
        self._calls: dict[int, dict[int, _Call]] = {select.EPOLLIN: {}, select.EPOLLOUT: {}}
        # Descriptors with one call only, which are nearly all: it handles whatever epoll reports.
        self._only: dict[int, _Call] = {}
        self._timer = Timer()
        self.watch(self._asyncio.fileno(), select.EPOLLIN, self._poll_asyncio)
        self.watch(self._timer.fileno(), select.EPOLLIN, self._timed_out)

    def watch(self, file: _File, event: int, call: _Call) -> None:
        fd = _descriptor(file)
        known = self._wanted(fd)
        self._calls[event][fd] = call
        wanted = self._update(fd)
        if known:
            # The descriptor may have been closed without being removed, and reused.
            with suppress(FileNotFoundError):
                self._epoll.modify(fd, wanted)
                return
        self._epoll.register(fd, wanted)

    def unwatch(self, file: _File, event: int) -> bool:
        fd = _descriptor(file)
        if self._calls[event].pop(fd, None) is None:
            return False
        wanted = self._update(fd)
        with suppress(OSError):  # already closed
            if wanted:
                self._epoll.modify(fd, wanted)
            else:
                self._epoll.unregister(fd)
        return True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Call readers and writers until asyncio has something to do, for at most `timeout` seconds."""
        self.asked = timeout is not None and timeout <= 0
        self._ready = []
        # Looked up before the wait, not after it. A timer of the kernel, because to read the clock between a packet and
        # the next wait takes 5 us on a processor that has slept.
        only, poll = self._only, self._epoll.poll
        wait = 0 if self.asked else -1
        if wait:
            self._timer.set(timeout)
        while True:
            for fd, events in poll(wait, _EVENTS_AT_ONCE):
                if fd not in only:
                    self._call_both(fd, events)
                    continue
                call = only[fd]
                try:
                    call()
                except Exception as error:  # noqa: BLE001 - reported; the loop continues, as asyncio's does
                    self._failed(call, error)
            if self.asked:
                return self._ready

    def _call_both(self, fd: int, events: int) -> None:
        """Call the reader and the writer of one descriptor; errors and hang-ups are for both."""
        for event, mask in ((select.EPOLLIN, ~select.EPOLLOUT), (select.EPOLLOUT, ~select.EPOLLIN)):
            call = self._calls[event].get(fd) if events & mask else None
            if call is not None:
                try:
                    call()
                except Exception as error:  # noqa: BLE001 - as above
                    self._failed(call, error)

    def _poll_asyncio(self) -> None:
        self._ready = self._asyncio.select(0)
        self.asked = True

    def _timed_out(self) -> None:
        """The timeout expired."""
        self.asked = True

    def _update(self, fd: int) -> int:
        """Update `_only` for a descriptor; returns the events to register."""
        calls = [calls[fd] for calls in self._calls.values() if fd in calls]
        if len(calls) == 1:
            self._only[fd] = calls[0]
        else:
            self._only.pop(fd, None)
        return self._wanted(fd)

    def _wanted(self, fd: int) -> int:
        return sum(event for event, calls in self._calls.items() if fd in calls)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._asyncio.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._asyncio.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._asyncio.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._asyncio.get_map()

    def close(self) -> None:
        self._epoll.close()
        self._asyncio.close()
        self._timer.close()


def _descriptor(file: _File) -> int:
    return file if isinstance(file, int) else file.fileno()
