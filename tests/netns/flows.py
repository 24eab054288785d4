"""Flows that last for as long as a test wants, and tell how they have fared.

python flows.py echo ADDRESS PORT    UDP: sends back what comes
python flows.py ask ADDRESS PORT     UDP: numbered datagrams; prints how many answers came, and the longest gap
python flows.py sink ADDRESS PORT    TCP: says in the end what the SHA-256 of all that came is
python flows.py pour ADDRESS PORT    TCP: sends random bytes; prints how many, and "same" if the SHA-256 is right

The second and the last go on until a line on standard input.
"""

import hashlib
import random
import select
import socket
import sys
import time

INTERVAL = 0.01
CHUNK = 20_000
PATIENCE = 30.0


def echo(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        print("ready", flush=True)
        while True:
            data, sender = sock.recvfrom(100)
            sock.sendto(data, sender)


def ask(address: str, port: int) -> None:
    """The longest time in which no answer came, in seconds. What cannot be sent counts as lost."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(INTERVAL)
        number, answers, longest = 0, 0, 0.0
        latest = time.monotonic()
        while not select.select([sys.stdin], [], [], INTERVAL)[0]:
            number += 1
            try:
                # Not connected: that would fix the source address, and with it the uplink.
                sock.sendto(b"%d" % number, (address, port))
                sock.recv(100)
            except OSError:
                continue
            now = time.monotonic()
            longest, latest = max(longest, now - latest), now
            answers += 1
            if answers == 1:
                print("ready", flush=True)
        longest = max(longest, time.monotonic() - latest)
        print(f"{answers} {longest:.3f}", flush=True)


def sink(address: str, port: int) -> None:
    with socket.create_server((address, port)) as listener:
        print("ready", flush=True)
        connection, _ = listener.accept()
        with connection:
            digest = hashlib.sha256()
            while data := connection.recv(1 << 18):
                digest.update(data)
            connection.sendall(digest.digest())


def pour(address: str, port: int) -> None:
    source, digest, count = random.Random(port), hashlib.sha256(), 0
    with socket.create_connection((address, port), timeout=PATIENCE) as connection:
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], INTERVAL)[0]:
            data = source.randbytes(CHUNK)
            connection.sendall(data)
            digest.update(data)
            count += len(data)
        connection.shutdown(socket.SHUT_WR)
        same = connection.recv(32) == digest.digest()
        print(f"{count} {'same' if same else 'different'}", flush=True)


if __name__ == "__main__":
    {"echo": echo, "ask": ask, "sink": sink, "pour": pour}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
