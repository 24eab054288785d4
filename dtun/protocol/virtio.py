"""The header in front of each packet of a TUN device with IFF_VNET_HDR: struct virtio_net_hdr (linux/virtio_net.h).

     0       1          2         4          6           8            10
    +-------+----------+---------+----------+-----------+------------+--------
    | flags | gso type | hdr_len | gso_size | csum_start| csum_offset| packet
    +-------+----------+---------+----------+-----------+------------+--------

All in host order. `gso_size` is the payload of each segment of a super-packet. With NEEDS_CSUM the 16 bits at
csum_start + csum_offset hold only the sum of the pseudo-header; the next sender of the packet completes the checksum.
"""

from struct import Struct
from typing import Final

HEADER: Final = Struct("=BBHHHH")
SIZE: Final = HEADER.size
NO_OFFLOAD: Final = bytes(SIZE)
"""In front of a packet that is complete."""

NEEDS_CSUM: Final = 1

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80
"""Added to a TCP type: the first segment has CWR set, the others must not (RFC 3168, section 6.1.2)."""
