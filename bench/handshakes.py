"""Log in to a dtun server repeatedly, as a new client; print the duration of each login in ms, as JSON.

    handshakes.py ADDRESS PORT ID KEY SUITES COUNT

From the first datagram to the server's welcome: cookie, handshake, and an address from the pool. KEY is a file with the
key in base64, SUITES the suites' labels with commas between them. Each session ends with a goodbye.
"""

# Prints to the benchmark:
# ruff: noqa: T201

import base64
import json
import secrets
import select
import socket
import sys
import time
from pathlib import Path

from dtun.dtls.engine import ClientEngine
from dtun.dtls.suites import by_name
from dtun.protocol.messages import Hello, Welcome
from dtun.session.dialect import NativeDialect
from dtun.session.session import Established, Received, Session

PATIENCE = 10.0
MOST = 65535


def log_in(engine: ClientEngine, address: str, port: int) -> float:
    """One session from its beginning to its end; seconds until the welcome.

    Raises:
        TimeoutError: it was not welcome in time.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        begin = time.monotonic()
        session = Session(
            engine.associate(begin),
            lambda _, count, now: NativeDialect(count, PATIENCE, PATIENCE, now),
            begin,
            handshake_deadline=begin + PATIENCE,
        )
        welcome = None
        while welcome is None:
            now = time.monotonic()
            session.poll(now)
            for event in session.take_events():
                if event == Established():
                    session.send(Hello(instance=secrets.token_hex(8)), now)
                elif isinstance(event, Received) and isinstance(event.message, Welcome):
                    welcome = now
            _send(sock, session)
            if welcome is None:
                _receive(sock, session, begin + PATIENCE)
        session.close("stopped", "the benchmark has seen enough", time.monotonic())
        _send(sock, session)
        return welcome - begin


def _send(sock: socket.socket, session: Session) -> None:
    for datagram in session.take_outgoing():
        sock.send(datagram)


def _receive(sock: socket.socket, session: Session, deadline: float) -> None:
    now = time.monotonic()
    if session.closed is not None or now > deadline:
        raise TimeoutError(f"no welcome: {session.closed}")
    timer = session.next_timer()
    wait = min(deadline, timer) - now if timer is not None else deadline - now
    if select.select([sock], [], [], max(wait, 0))[0]:
        session.receive(sock.recv(MOST), time.monotonic())


def main(address: str, port: str, name: str, key: str, suites: str, count: str) -> None:
    secret = base64.b64decode(Path(key).read_text())
    engine = ClientEngine(name, secret, [by_name(suite) for suite in suites.split(",")], native=True)
    print(json.dumps([log_in(engine, address, int(port)) * 1000 for _ in range(int(count))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
