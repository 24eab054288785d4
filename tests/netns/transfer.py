"""Data between two hosts, checked at both ends.

python transfer.py serve ADDRESS PORT              TCP: hashes what comes, sends as much back; UDP: echoes
python transfer.py tcp ADDRESS PORT BYTES SEED     both ways, one after the other; prints "same" or fails
python transfer.py udp ADDRESS PORT FIRST LAST     one datagram of each size there and back; prints "same" or fails
python transfer.py batch ADDRESS PORT SIZE COUNT   datagrams in batches (UDP_SEGMENT), echoed; prints "same" or fails
python transfer.py flood ADDRESS PORT DEVICE       UDP, as fast as it goes, until standard input ends
"""

import hashlib
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Callable

CHUNK = 1 << 18
WINDOW = 1 << 16  # bytes on their way at once
PATIENCE = 60.0
UDP_SEGMENT = 103
BATCH = 40


def payload(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def read_all(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(CHUNK, size - len(data)))
        if not part:
            sys.exit(f"the connection ended after {len(data)} of {size} bytes")
        data += part
    return bytes(data)


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve(address: str, port: int) -> None:
    with (
        socket.create_server((address, port), family=family(address)) as listener,
        socket.socket(family(address), socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind((address, port))
        threading.Thread(target=echo, args=(datagrams,), daemon=True).start()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                size, seed = (int(word) for word in read_all(connection, 24).split())
                connection.sendall(hashlib.sha256(read_all(connection, size)).digest())
                connection.sendall(payload(size, seed + 1))


def echo(datagrams: socket.socket) -> None:
    while True:
        data, sender = datagrams.recvfrom(65535)
        datagrams.sendto(data, sender)


def tcp(address: str, port: int, size: int, seed: int) -> None:
    data = payload(size, seed)
    with socket.create_connection((address, port), timeout=PATIENCE) as connection:
        connection.sendall(f"{size:12}{seed:12}".encode() + data)
        if read_all(connection, 32) != hashlib.sha256(data).digest():
            sys.exit("what came there is not what was sent")
        back = hashlib.sha256(read_all(connection, size)).digest()
        if back != hashlib.sha256(payload(size, seed + 1)).digest():
            sys.exit("what came back is not what was sent")
    print("same")


def udp(address: str, port: int, first: int, last: int) -> None:
    """Of every size, a window at a time; what does not come back is sent again, and what is wrong is an error."""
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        sock.settimeout(0.5)
        deadline = time.monotonic() + PATIENCE
        sizes = list(range(first, last + 1))
        while sizes:
            if time.monotonic() > deadline:
                sys.exit(f"no datagram came back of the sizes {sizes[:20]}")
            count = max(1, min(32, WINDOW // sizes[-1]))
            waiting = set(sizes[:count])
            for size in sorted(waiting):
                sock.send(payload(size, size))
            try:
                while waiting:
                    data = sock.recv(65535)
                    if data != payload(len(data), len(data)):
                        sys.exit(f"a datagram of {len(data)} bytes came back changed")
                    waiting.discard(len(data))
            except TimeoutError:
                pass
            sizes = sorted(waiting) + sizes[count:]
    print("same")


def batch(address: str, port: int, size: int, count: int) -> None:
    """A super-packet for each batch, whose last datagram is short; batches that do not come back are sent again."""
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        sock.settimeout(0.5)
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        deadline = time.monotonic() + PATIENCE
        for first in range(0, count, BATCH):
            datagrams = [
                number.to_bytes(2) + payload(size - 2, number) for number in range(first, first + BATCH)
            ]
            datagrams[-1] = datagrams[-1][: size // 2]
            waiting = set(datagrams)
            while waiting:
                if time.monotonic() > deadline:
                    sys.exit(f"{len(waiting)} datagrams of the batch {first} did not come back as they were")
                sock.send(b"".join(datagrams))
                try:
                    while waiting:
                        waiting.discard(sock.recv(65535))
                except TimeoutError:
                    pass
    print("same")


def flood(address: str, port: int, device: str) -> None:
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        sock.connect((address, port))
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            for _ in range(100):
                try:
                    sock.send(bytes(1200))
                except OSError:
                    continue


if __name__ == "__main__":
    command, at, number, *rest = sys.argv[1:]
    if command == "flood":
        flood(at, int(number), rest[0])
    else:
        commands: dict[str, Callable[..., None]] = {"serve": serve, "tcp": tcp, "udp": udp, "batch": batch}
        commands[command](at, int(number), *map(int, rest))
