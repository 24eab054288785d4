"""Darwin's structures from the kernel's side, written from its headers and independent of dtun's code."""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address

INET, LINK, INET6 = 2, 18, 30
ORDER = (1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80)


class KernelError(OSError):
    """An error of the kernel."""

    def __init__(self, number: int) -> None:
        super().__init__(number, f"Darwin says {number}")


def sockaddr(address: Address) -> bytes:
    if address.version == 4:
        return struct.pack("=BBH4s8x", 16, INET, 0, address.packed)
    return struct.pack("=BBHI16sI", 28, INET6, 0, 0, address.packed, 0)


def link(index: int, name: str = "") -> bytes:
    data = name.encode()
    return struct.pack("=BBHBBBB12s", 20, LINK, index, 6, len(data), 0, 0, data)


def address_of(data: bytes) -> Address:
    """The address in an untrimmed sockaddr."""
    if data[1] == INET:
        require(len(data) == 16 == data[0])
        return ip_address(data[4:8])
    require(data[1] == INET6 and len(data) == 28 == data[0])
    return ip_address(data[8:24])


def require(condition: bool, number: int = 22) -> None:
    """Raise EINVAL, or another error, unless the condition holds."""
    if not condition:
        raise KernelError(number)


def trimmed_mask(version: int, length: int) -> bytes:
    """As the radix tree keeps it: without trailing zeros, and with ones in place of family and port."""
    start, width = (4, 4) if version == 4 else (8, 16)
    bits = ((1 << length) - 1) << (width * 8 - length)
    mask = bits.to_bytes(width, "big").rstrip(b"\0")
    if not mask:
        return b""
    return bytes([start + len(mask)]) + b"\xff" * 3 + b"\xff" * (start - 4) + mask


def padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 4) * 4 or 4, b"\0")


def message(kind: int, index: int, flags: int, addresses: dict[int, bytes], *, pid: int = 0) -> bytes:
    """An rt_msghdr with its addresses."""
    body = b"".join(padded(addresses[bit]) for bit in ORDER if bit in addresses)
    head = struct.pack(
        "=HBBHHiiiiiiI", 92 + len(body), 5, kind, index, 0, flags, sum(addresses), pid, 0, 0, 0, 0
    )
    return head + bytes(56) + body


def parse_request(data: bytes) -> tuple[int, int, dict[int, bytes]]:
    """Type, flags and addresses of a request. Parsing stops at a sockaddr of length 0."""
    require(len(data) >= 92)
    length, version, kind, _, _, flags, bits = struct.unpack_from("=HBBHHii", data)
    require(length == len(data))
    require(version == 5, 43)
    addresses, rest = {}, data[92:]
    for bit in ORDER:
        if not bits & bit or not rest:
            continue
        if rest[0] == 0:
            break
        require(rest[0] <= len(rest))
        addresses[bit] = rest[: rest[0]]
        rest = rest[-(-rest[0] // 4) * 4 :]
    return kind, flags, addresses


def interface_message(index: int, name: str, flags: int, mtu: int) -> bytes:
    """An if_msghdr; byte 8 of its if_data is the MTU."""
    address = padded(link(index, name))
    head = struct.pack("=HBBiiHxx", 112 + len(address), 5, 0xE, 0x10, flags, index)
    return head + bytes(8) + struct.pack("=I", mtu) + bytes(84) + address


def address_message(kind: int, index: int, mask: bytes, local: Address, peer: Address | None) -> bytes:
    """An ifa_msghdr."""
    addresses = {4: mask, 0x20: sockaddr(local)}
    if peer is not None:
        addresses[0x80] = sockaddr(peer)
    body = b"".join(padded(addresses[bit]) for bit in ORDER if bit in addresses)
    return struct.pack("=HBBiiHxxi", 20 + len(body), 5, kind, sum(addresses), 0, index, 0) + body
