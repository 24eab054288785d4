"""The greeting of the original Go dtun: two application records, once, before bare IP packets both ways.

server -> client   client's IPv4 address 4 | server's IPv4 address 4 | anything
client -> server   text: one CIDR such as 10.0.0.0/16, or "empty"
"""

from ipaddress import IPv4Address, IPv4Network

NO_SUBNET = b"empty"


def encode_greeting(client: IPv4Address, server: IPv4Address) -> bytes:
    return client.packed + server.packed


def decode_greeting(record: bytes) -> tuple[IPv4Address, IPv4Address] | None:
    """The client's and the server's address; None if the record is too short to be a greeting."""
    if len(record) < 8:
        return None
    return IPv4Address(record[:4]), IPv4Address(record[4:8])


def encode_answer(subnet: IPv4Network | None) -> bytes:
    return NO_SUBNET if subnet is None else str(subnet).encode()


def decode_answer(record: bytes) -> tuple[IPv4Network, ...] | None:
    """The subnets behind the client (none or one); None if the record is no answer.

    The original parses with Go's net.ParseCIDR, which takes host bits and cuts them off; so does this.
    """
    if record == NO_SUBNET:
        return ()
    try:
        text = record.decode("ascii")
        # Python would take a mask instead of the prefix length, or leave the latter out.
        if not text.partition("/")[2].isdigit() or len(text) > len("255.255.255.255/32"):
            return None
        return (IPv4Network(text, strict=False),)
    except ValueError:
        return None
