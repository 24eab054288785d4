"""A bad network in one process: a UDP relay that drops, doubles, delays and reorders, seeded; or a NAT that forgets.

    python relay.py LISTEN_ADDRESS LISTEN_PORT TO_ADDRESS TO_PORT [SEED LOSS]

SIGUSR1 gives all that is relayed from then on a new source port, as a NAT does after it was restarted.
"""

import asyncio
import random
import signal
import socket
import sys
from typing import Any

DUPLICATES = 0.05
LONGEST_DELAY = 0.03


class Relay:
    """Relays between one client and the server, with faults at the rates that it was given."""

    def __init__(self, listen: tuple[str, int], to: tuple[str, int], seed: int, loss: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._random = random.Random(seed)
        self._loss = loss
        self._to = to
        self._client: Any = None
        self._inside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._inside.setblocking(False)
        self._inside.bind(listen)
        self._outside = self._new_outside()
        self._loop.add_reader(self._inside, self._from_client)

    def forget(self) -> None:
        """Use a new source port towards the server; what comes to the old one is for nobody."""
        self._loop.remove_reader(self._outside)
        self._outside.close()
        self._outside = self._new_outside()

    def _new_outside(self) -> socket.socket:
        outside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        outside.setblocking(False)
        outside.connect(self._to)
        self._loop.add_reader(outside, self._from_server)
        return outside

    def _from_client(self) -> None:
        datagram, self._client = self._inside.recvfrom(65535)
        self._relay(lambda: self._outside.send(datagram))

    def _from_server(self) -> None:
        try:
            datagram = self._outside.recv(65535)
        except OSError:
            return
        if self._client is not None:
            self._relay(lambda: self._inside.sendto(datagram, self._client))

    def _relay(self, send: Any) -> None:
        def deliver() -> None:
            try:
                send()
            except OSError:
                return

        if not self._loss:
            deliver()
            return
        for _ in range(2 if self._random.random() < DUPLICATES else 1):
            if self._random.random() >= self._loss:
                self._loop.call_later(self._random.uniform(0, LONGEST_DELAY), deliver)


async def main(listen: str, port: str, to: str, to_port: str, seed: str = "0", loss: str = "0") -> None:
    relay = Relay((listen, int(port)), (to, int(to_port)), int(seed), float(loss))
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, relay.forget)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
