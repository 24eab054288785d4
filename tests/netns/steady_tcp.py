"""One TCP connection that must live: numbered lines there and back, every one of them, in order.

python steady_tcp.py serve ADDRESS PORT
python steady_tcp.py talk ADDRESS PORT      until a line on standard input; then prints what it has seen
"""

import select
import socket
import sys
import time

INTERVAL = 0.01


def serve(address: str, port: int) -> None:
    with socket.create_server((address, port)) as listener:
        print("ready", flush=True)
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)


def talk(address: str, port: int) -> None:
    with (
        socket.create_connection((address, port), timeout=30) as connection,
        connection.makefile("rb") as lines,
    ):
        print("ready", flush=True)
        number, longest = 0, 0.0
        while not select.select([sys.stdin], [], [], INTERVAL)[0]:
            before = time.monotonic()
            connection.sendall(b"%d\n" % number)
            if lines.readline() != b"%d\n" % number:
                sys.exit("the connection does not carry what was sent")
            longest = max(longest, time.monotonic() - before)
            number += 1
        print(f"{number} lines, longest wait {longest:.3f} s", flush=True)


if __name__ == "__main__":
    {"serve": serve, "talk": talk}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
