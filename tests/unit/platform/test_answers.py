"""An answer of the kernel that never comes, as when there is no memory for it, holds nothing up for ever."""

import asyncio
import errno
import socket
from contextlib import closing
from unittest.mock import Mock

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from dtun.network.state import NetDevice
from dtun.platform.linux.netlink import dump, requests
from dtun.platform.linux.netlink.wire import RTM_GETLINK


async def test_a_dump_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump, "ANSWER_TIME", 0.01)
    monkeypatch.setattr(dump, "_send", lambda *_: None)
    with pytest.raises(NetlinkError) as refused:
        await dump.collect(RTM_GETLINK, bytes(16), bytes)
    assert refused.value.code == errno.ETIMEDOUT
    with pytest.raises(NetlinkError):
        dump.query(RTM_GETLINK, bytes(16))


async def test_a_change_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def link(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(requests, "ANSWER_TIME", 0.01)
    with closing(requests.Requests()) as made:
        real, made._socket = made._socket, Mock(link=link)
        with pytest.raises(NetlinkError) as refused:
            await made.set_down(NetDevice(socket.if_indextoname(1), 1500))
        made._socket = real
    assert refused.value.code == errno.ETIMEDOUT
