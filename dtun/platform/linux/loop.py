"""asyncio's event loop with a shorter way for readers and writers: their callbacks run where epoll reports them.

Otherwise a list of events, a look-up, a queue of handles and a context lie between epoll and a callback. A packet that
comes after a pause waits for that, with cold caches, on each of its four ways in and out of a tunnel: 0.1 of 0.6 ms for
a ping.
"""

import asyncio
import select
import selectors
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVarTuple

assert sys.platform == "linux"  # noqa: S101 - tells type checkers for other systems that epoll is not theirs

_EVENTS_AT_ONCE = 64

_Arguments = TypeVarTuple("_Arguments")
_Call = tuple[Callable[..., object], tuple[Any, ...]]


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


_File = int | _HasDescriptor


class DirectLoop(asyncio.SelectorEventLoop):
    """A loop that serves `add_reader` and `add_writer` before everything else that is due in a turn. Linux only."""

    def __init__(self) -> None:
        self._direct = _DirectSelector(self._failed)
        super().__init__(self._direct)

    def add_reader(self, fd: _File, callback: Callable[[*_Arguments], Any], *args: *_Arguments) -> None:
        self._direct.watch(fd, select.EPOLLIN, (callback, args))

    def add_writer(self, fd: _File, callback: Callable[[*_Arguments], Any], *args: *_Arguments) -> None:
        self._direct.watch(fd, select.EPOLLOUT, (callback, args))

    def remove_reader(self, fd: _File) -> bool:
        return self._direct.forget(fd, select.EPOLLIN)

    def remove_writer(self, fd: _File) -> bool:
        return self._direct.forget(fd, select.EPOLLOUT)

    def _failed(self, callback: Callable[..., object], error: Exception) -> None:
        self.call_exception_handler({"message": f"Exception in callback {callback!r}", "exception": error})


class _DirectSelector(selectors.BaseSelector):
    """An epoll with the descriptors of `watch`, and one more that stands for all that asyncio itself waits for."""

    def __init__(self, failed: Callable[[Callable[..., object], Exception], None]) -> None:
        self._failed = failed
        self._others = selectors.EpollSelector()
        self._epoll = select.epoll()
        self._others_fd = self._others.fileno()
        self._epoll.register(self._others_fd, select.EPOLLIN)
        self._calls: dict[int, dict[int, _Call]] = {select.EPOLLIN: {}, select.EPOLLOUT: {}}
        # Errors and hang-ups are for both.
        self._readers = (self._calls[select.EPOLLIN], ~select.EPOLLOUT)
        self._writers = (self._calls[select.EPOLLOUT], ~select.EPOLLIN)

    def watch(self, file: _File, event: int, call: _Call) -> None:
        fd = _descriptor(file)
        known = self._wanted(fd)
        self._calls[event][fd] = call
        if known:
            # The one before may have been closed without a word, and its number be another's now.
            with suppress(FileNotFoundError):
                self._epoll.modify(fd, known | event)
                return
        self._epoll.register(fd, known | event)

    def forget(self, file: _File, event: int) -> bool:
        fd = _descriptor(file)
        if self._calls[event].pop(fd, None) is None:
            return False
        with suppress(OSError):  # closed already
            if wanted := self._wanted(fd):
                self._epoll.modify(fd, wanted)
            else:
                self._epoll.unregister(fd)
        return True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = []
        for fd, events in self._epoll.poll(timeout, _EVENTS_AT_ONCE):
            if fd == self._others_fd:
                ready = self._others.select(0)
                continue
            for calls, mask in (self._readers, self._writers):
                call = calls.get(fd) if events & mask else None
                if call is not None:
                    try:
                        call[0](*call[1])
                    except Exception as error:  # noqa: BLE001 - one of many; the loop goes on, as asyncio's does
                        self._failed(call[0], error)
        return ready

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


def _descriptor(file: _File) -> int:
    return file if isinstance(file, int) else file.fileno()
