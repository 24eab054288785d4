"""Looks at every packet of a device until standard input ends, and says how they were: python checksums.py DEVICE.

Prints "ready", and at the end JSON: how many packets came in, the first few bad ones, and what they had of ECN.
"""

import json
import select
import socket
import sys
from collections import Counter

from tests.unit.protocol.segmenter import CWR, ECE, TCP, has_right_checksums, transport

SO_RCVBUFFORCE = 33
ETH_P_ALL = 3
IP_TYPES = (b"\x08\x00", b"\x86\xdd")
PACKET_OUTGOING = 4


def look(packet: bytes, counts: Counter[str], bad: list[str]) -> None:
    counts["packets"] += 1
    counts["largest"] = max(counts["largest"], len(packet))
    if not has_right_checksums(packet):
        bad.append(packet[:80].hex())
    protocol, start = transport(packet)
    counts[f"protocol {protocol}"] += 1
    if protocol == TCP:
        counts["CWR"] += bool(packet[start + 13] & CWR)
        counts["ECE"] += bool(packet[start + 13] & ECE)


def main(device: str) -> None:
    counts: Counter[str] = Counter()
    bad: list[str] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as capture:
        capture.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        capture.bind((device, ETH_P_ALL))
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([capture, sys.stdin], [], [])
            if capture in ready:
                frame, (_, _, direction, *_) = capture.recvfrom(1 << 16)
                if frame[12:14] in IP_TYPES and direction != PACKET_OUTGOING:
                    look(frame[14:], counts, bad)
            elif ready:
                break
    print(json.dumps({**counts, "bad": bad[:5]}))


if __name__ == "__main__":
    main(sys.argv[1])
