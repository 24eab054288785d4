"""asyncio's event loop with a shorter way for readers and writers: their callbacks run where epoll reports them.

Otherwise a list of events, a look-up, a queue of handles and a context lie between epoll and a callback, and the timers
between a callback and the next wait. A packet that comes after a pause waits for that, on a processor that has slept,
each time that it goes in or out of a tunnel.
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

assert sys.platform == "linux"  # noqa: S101 - tells type checkers for other systems that epoll is not theirs

_EVENTS_AT_ONCE = 64

_Arguments = TypeVarTuple("_Arguments")
_Call = Callable[[], object]


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


_File = int | _HasDescriptor


class DirectLoop(asyncio.SelectorEventLoop):
    """A loop that serves `add_reader` and `add_writer` before everything else that is due in a turn. Linux only.

    It goes back to asyncio's own part of a turn when a callback has asked for something there, or a timer is due.
    """

    def __init__(self) -> None:
        self._direct = _DirectSelector(self._failed)
        super().__init__(self._direct)

    def add_reader(self, fd: _File, callback: Callable[[*_Arguments], Any], *args: *_Arguments) -> None:
        self._direct.watch(fd, select.EPOLLIN, partial(callback, *args) if args else callback)

    def add_writer(self, fd: _File, callback: Callable[[*_Arguments], Any], *args: *_Arguments) -> None:
        self._direct.watch(fd, select.EPOLLOUT, partial(callback, *args) if args else callback)

    # `sock_recv` and its like enter a descriptor in asyncio's part, by a way of their own, and take it out by these.
    def remove_reader(self, fd: _File) -> bool:
        return self._direct.forget(fd, select.EPOLLIN) or super().remove_reader(fd)

    def remove_writer(self, fd: _File) -> bool:
        return self._direct.forget(fd, select.EPOLLOUT) or super().remove_writer(fd)

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
    """An epoll with the descriptors of `watch`; one of them stands for all that asyncio itself waits for, one for time.

    `asked`: there is something to do for asyncio.
    """

    def __init__(self, failed: Callable[[_Call, Exception], None]) -> None:
        self.asked = False
        self._failed = failed
        self._others = selectors.EpollSelector()
        self._ready: list[tuple[selectors.SelectorKey, int]] = []
        self._epoll = select.epoll()
        self._calls: dict[int, dict[int, _Call]] = {select.EPOLLIN: {}, select.EPOLLOUT: {}}
        # Of descriptors that are either read or written, nearly all of them: whatever epoll reports is for this call.
        self._only: dict[int, _Call] = {}
        self._timer = Timer()
        self.watch(self._others.fileno(), select.EPOLLIN, self._ask_others)
        self.watch(self._timer.fileno(), select.EPOLLIN, self._go_back)

    def watch(self, file: _File, event: int, call: _Call) -> None:
        fd = _descriptor(file)
        known = self._wanted(fd)
        self._calls[event][fd] = call
        wanted = self._sort(fd)
        if known:
            # The one before may have been closed without a word, and its number be another's now.
            with suppress(FileNotFoundError):
                self._epoll.modify(fd, wanted)
                return
        self._epoll.register(fd, wanted)

    def forget(self, file: _File, event: int) -> bool:
        fd = _descriptor(file)
        if self._calls[event].pop(fd, None) is None:
            return False
        wanted = self._sort(fd)
        with suppress(OSError):  # closed already
            if wanted:
                self._epoll.modify(fd, wanted)
            else:
                self._epoll.unregister(fd)
        return True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Serve those of `watch` until something else is to be done: for `timeout` seconds at most."""
        self.asked = timeout is not None and timeout <= 0
        self._ready = []
        # Looked up before a wait, not after it. The kernel keeps the time: between a packet and the next wait a look at
        # a clock, and sums with it, take 5 us of a processor that has slept.
        only, poll = self._only, self._epoll.poll
        wait = 0 if self.asked else -1
        if wait:
            self._timer.set(timeout)
        while True:
            for fd, events in poll(wait, _EVENTS_AT_ONCE):
                if fd not in only:
                    self._serve_both(fd, events)
                    continue
                call = only[fd]
                try:
                    call()
                except Exception as error:  # noqa: BLE001 - one of many; the loop goes on, as asyncio's does
                    self._failed(call, error)
            if self.asked:
                return self._ready

    def _serve_both(self, fd: int, events: int) -> None:
        """Serve the reader and the writer of one descriptor; errors and hang-ups are for both."""
        for event, mask in ((select.EPOLLIN, ~select.EPOLLOUT), (select.EPOLLOUT, ~select.EPOLLIN)):
            call = self._calls[event].get(fd) if events & mask else None
            if call is not None:
                try:
                    call()
                except Exception as error:  # noqa: BLE001 - as above
                    self._failed(call, error)

    def _ask_others(self) -> None:
        self._ready = self._others.select(0)
        self.asked = True

    def _go_back(self) -> None:
        """The time is up."""
        self.asked = True

    def _sort(self, fd: int) -> int:
        """Enter a descriptor in `_only`, or strike it off; returns the events that are wanted of it."""
        calls = [calls[fd] for calls in self._calls.values() if fd in calls]
        if len(calls) == 1:
            self._only[fd] = calls[0]
        else:
            self._only.pop(fd, None)
        return self._wanted(fd)

    def _wanted(self, fd: int) -> int:
        return sum(event for event, calls in self._calls.items() if fd in calls)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._others.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._others.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._others.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._others.get_map()

    def close(self) -> None:
        self._epoll.close()
        self._others.close()
        self._timer.close()


def _descriptor(file: _File) -> int:
    return file if isinstance(file, int) else file.fileno()
