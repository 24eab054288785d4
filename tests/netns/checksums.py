"""Looks at packets of a device until standard input ends, and says how they were.

python checksums.py DEVICE        every packet that comes in: complete, and each checksum right?
python checksums.py DEVICE sent   every packet that goes out, may be as a super-packet that stands for many

Prints "ready", and at the end JSON: how many packets there were, the first few bad ones, and what they had of ECN; and
`prints`: a fingerprint of each TCP and UDP packet, or of each that a super-packet stands for, with its first bytes. So
what goes out at one end of a path can be compared with what comes in at the other.
"""

import hashlib
import json
import select
import socket
import sys
from collections import Counter

from tests.unit.protocol.segmenter import (
    CHECKSUM_AT,
    CWR,
    TCP,
    Virtio,
    has_right_checksums,
    segments,
    transport,
)

SYN = 0x02
CONGESTED = 3
SO_RCVBUFFORCE = 33
SOL_PACKET = 263
PACKET_VNET_HDR = 15
VNET_HEADER = 10
ETH_HEADER = 14
ETH_P_ALL = 3
IP_TYPES = (b"\x08\x00", b"\x86\xdd")
PACKET_OUTGOING = 4
MOST = 1 << 17


def fingerprint(packet: bytes) -> str:
    """The same for a packet before and after routers: they change hops and ECN. Checksums are judged by themselves."""
    protocol, start = transport(packet)
    lasting = bytearray(packet)
    if packet[0] >> 4 == 4:
        lasting[1] &= 0xFC
        lasting[8] = lasting[10] = lasting[11] = 0
    else:
        lasting[1] &= 0xCF
        lasting[7] = 0
    at = start + CHECKSUM_AT[protocol]
    lasting[at : at + 2] = bytes(2)
    return hashlib.blake2b(lasting, digest_size=8).hexdigest()


def is_congested(packet: bytes) -> bool:
    ecn = packet[1] if packet[0] >> 4 == 4 else packet[1] >> 4
    return ecn & 3 == CONGESTED


class Watch:
    """What was seen so far."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []
        self.prints: dict[str, str] = {}

    def came(self, packet: bytes) -> None:
        self.counts["packets"] += 1
        self.counts["largest"] = max(self.counts["largest"], len(packet))
        self.counts["congested"] += is_congested(packet)
        if not has_right_checksums(packet):
            self.bad.append(packet[:80].hex())
        self.look(packet, [packet])

    def sent(self, read: bytes) -> None:
        """One packet as the kernel gives it to the device, after a virtio header and the Ethernet header."""
        size = Virtio.decode(read).size
        packet = read[VNET_HEADER + ETH_HEADER :]
        whole = segments(packet, size) if size else [packet]
        self.counts["super-packets"] += len(whole) > 1
        self.look(packet, whole)

    def look(self, packet: bytes, whole: list[bytes]) -> None:
        protocol, start = transport(packet)
        self.counts[f"protocol {protocol}"] += 1
        if protocol not in CHECKSUM_AT:
            return
        if protocol == TCP:
            flags = packet[start + 13]
            if flags & SYN:  # uses the bits of ECN for something else, and routers change its options
                return
            self.counts["CWR"] += bool(flags & CWR)
            self.counts["CWR of super-packets"] += bool(flags & CWR) and len(whole) > 1
        for one in whole:
            self.prints[fingerprint(one)] = one[:60].hex()


def main(device: str, what: str = "came") -> None:
    watch = Watch()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as capture:
        capture.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        skipped = VNET_HEADER if what == "sent" else 0
        if skipped:
            capture.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        capture.bind((device, ETH_P_ALL))
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([capture, sys.stdin], [], [])
            if capture in ready:
                read, (_, _, direction, *_) = capture.recvfrom(MOST)
                if read[skipped + 12 : skipped + ETH_HEADER] not in IP_TYPES:
                    continue
                if direction == PACKET_OUTGOING and skipped:
                    watch.sent(read)
                elif direction != PACKET_OUTGOING and not skipped:
                    watch.came(read[ETH_HEADER:])
            elif ready:
                break
    print(json.dumps({**watch.counts, "bad": watch.bad[:5], "prints": watch.prints}))


if __name__ == "__main__":
    main(*sys.argv[1:])
