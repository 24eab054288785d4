"""A flow of numbered UDP datagrams, sent whichever way the host has at the time, and answered.

python flows.py echo ADDRESS PORT       sends back what comes
python flows.py ask ADDRESS PORT        until a line on standard input; then prints how many answers, and the longest gap
"""

import select
import socket
import sys
import time

INTERVAL = 0.01


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


if __name__ == "__main__":
    {"echo": echo, "ask": ask}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
