"""Filters as nf_tables' bytes, compared with what nft(8) sends for the same; what the kernel's answers mean."""

import asyncio
import base64
import errno
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, strategies as st

from dtun.network.state import (
    ClampMss,
    DropIPv6OutsideTunnel,
    DropOtherTrafficToServer,
    DropUnreachableIPv6,
    Filter,
    Masquerade,
)
from dtun.platform.linux.netlink.wire import NLM_F_ACK
from dtun.platform.linux.nftables import firewall
from dtun.platform.linux.nftables.firewall import NOT_PERMITTED, explain_refusal
from dtun.platform.linux.nftables.layout import layout, replacement, update
from dtun.platform.linux.nftables.monitor import deletes_from
from dtun.platform.linux.nftables.wire import (
    NFPROTO_INET,
    NFT_MSG_DELSETELEM,
    NFT_MSG_NEWSET,
    NFT_MSG_NEWSETELEM,
    Reply,
    encode_batch,
    replies,
    text,
)

FILTERS: frozenset[Filter] = frozenset(
    {
        Masquerade("dtun-home", "eth0"),
        Masquerade("fifteen-letters", "eth0.100"),
        ClampMss("dtun-home", 1400),
        DropOtherTrafficToServer(ip_address("192.0.2.1"), 4433),
        DropOtherTrafficToServer(ip_address("2001:db8::1"), 4434),
        DropOtherTrafficToServer(ip_address("2001:db8::1"), 4433),
        DropIPv6OutsideTunnel((ip_network("2001:db8:1::/64"), ip_network("fd00::/8"))),
    }
)

SENT_BY_NFT = zlib.decompress(
    base64.b64decode(
        "eNrtWjtz00oU3l3Ljyh24gQDvhDAgIEAhvGdyTDMnVTUFMBQMhMEUrDAtowjT6BzwQwUFBQUlJT8BIpbUFLwA25JcQvKW9HdmLOrs7Kj"
        "GFlrHCKINSM/pHO+3fN9Zx86doEQkieUDBx6RbxS/yp/n4NX0+00L9WchgXfM4SJe2U4GdiyEFuJl4iAdwfOhE41LcS2AEhNw11rORtu"
        "2+m4dvMB+Kf5NXhPCrcC0boZLwINsc27iJ0MwV4E7Pt1o9FaW3fam0bbhGuzgL1u112rTYbhM47f6/UeSvxUCP4C4D/oAO4adLzVcclo"
        "/ATif5X46RH99/CV+/+1Bl9mAD8Tgp8H24ax8bhjtQ3TMgHPUzVDuGK6jfilDNGxnRwRt3gYWk6gvoHXLLQzo9SOAKF3SKJbIbS7DGc5"
        "4MMPy61VB5O5Qphvu26vu5bVvFS3XOBiQ9he/rPq27/D+PWQfuWgXyI/LHPFi1vEn8H+ncf48xmSwtxLI8cClV0TfHBkqvGsTMwRwQNN"
        "EZE32hEi+KeL3n2meTnMP6dwUNSQv1mlfgpnVgH+OB9FOAtD+MsCXym4nrzR5yMbrZ0rY/CRmCQfOaV+ekkZmY9Vb27ifMyFtKNDO07L"
        "al7pc6FhW5k+FyJ2yLMcRkLIZ4xhPjK2wNTeQf8ht7vYFpVxBI8liEPeK9Hc+0GTMmAE/dGG9v013///AHaZJHf4bwVsPnG9dJrNh87r"
        "bMe8/hra5fHNgG3Dcg3i2XVxTk/hHEZDbNJynlsBm1n4XHecR50W77dvQ/kaOGy+KUhcuCcIB5+/MZaF0HmY7VhHnoXHkpexVISelNxv"
        "tEhJ3Peuy75mQa8kXOPjowq2vG270bBM23At1Bp9+DzazQ5g1KjX90XFvlfpRPpOBvvO9cjC55bxtO4YJuqxzZ5hXuWkHtfR557tbtob"
        "Flkdwg/ONXL8AV+a32YWcjWJ3ETlmY3B8zLyfECR5//Cc2RelWcmxufo8bMaGBuVgbEheczx9oasKdLXeuLWzLb0FfM8TQIG62vBpA9q"
        "5PNU2GOe9N3hadtaMwmeDsY7n9JxyadD8c6n9F7n0yfk6XDoswrb8azymk4+nyKsA5KLvNz3RMHn1z4QRie5bi2orVusv+8ejc/3mQs3"
        "1deaf1DLoqKWb+nkc15ByyJyk786gF8Zgl8EfH9P2j/2ja5/THWNr663xtf1yFTXsXX9S01X/3kuKv5zMr6uR6e6xlbXF2PouoS6Linq"
        "+i/59fZKitwQud8+psjNbuy3f2bOq/L0Enk6rsjT7ZjMDWag7nJ7dN0lXwSNOXe9D9trgUWSHFqjjKrFVne7n+p4llqc2I9azE9Wix77"
        "MS0+Yi21pKjFq/D5w3++jhpH3fmxOIqYUycV4/gcHsdR1TiguUBt/rvYMyr5yve6W73xeTm1x7xs2m1LtBETXurIy2lFXlboT61T/Rb7"
        "csl1ecr1ru+VS8j1GUWuv8RkP1gN1GNLA/VYHa4Hf39V5Uf+dnhWkZ9nu8CP6h5W1ozPjaitB/9/Mq0Zx7e2uKyo5bRW8Wvoen6q629V"
        "M5Y1qAuKuu6nGtRFRW72Ww2qIPYW1Ps/Lv7X9xvMH7wW"
    )
)
"""What nft 1.0.6 sends to the kernel in one sendmsg() when it is fed with this:

  add table inet dtun-home
  delete table inet dtun-home
  table inet dtun-home {
    set masqueraded { type ifname . ifname;
      elements = { "dtun-home" . "eth0", "fifteen-letters" . "eth0.100" }
    }
    map clamped4 { typeof iifname : tcp option maxseg size; elements = { "dtun-home" : 1360 } }
    map clamped6 { typeof iifname : tcp option maxseg size; elements = { "dtun-home" : 1340 } }
    set open6 { type ipv6_addr; flags interval; elements = { 2001:db8:1::/64, fd00::/8 } }
    chain nat_postrouting { type nat hook postrouting priority srcnat; policy accept;
      iifname . oifname @masqueraded masquerade
    }
    chain clamp_forward { type filter hook forward priority mangle; policy accept;
      meta l4proto != tcp accept
      tcp flags & (syn | rst) != syn accept
      meta nfproto ipv4 tcp option maxseg size set iifname map @clamped4
      meta nfproto ipv6 tcp option maxseg size set iifname map @clamped6
      (both again with oifname)
    }
    chain guard_output { type filter hook output priority -10; policy accept;
      ip daddr 192.0.2.1 udp dport 4433 accept
      ip6 daddr 2001:db8::1 udp dport 4433 accept
      ip6 daddr 2001:db8::1 udp dport 4434 accept
      ip6 daddr 2001:db8::1 icmpv6 type nd-neighbor-solicit accept
      ip6 daddr 2001:db8::1 icmpv6 type nd-neighbor-advert accept
      ip daddr 192.0.2.1 drop
      ip6 daddr 2001:db8::1 drop
      ip6 daddr & ffc0:: == fe80:: accept
      ip6 daddr & ff0f:: == ff02:: accept
      oifname "lo" accept
      meta oifkind "tun" meta oiftype 65534 accept
      meta oifkind "wireguard" meta oiftype 65534 accept
      icmpv6 type nd-neighbor-solicit accept
      icmpv6 type nd-neighbor-advert accept
      ip6 daddr @open6 accept
      meta nfproto ipv6 drop
    }
    chain guard_forward { type filter hook forward priority -10; policy accept;
      (what is about the servers, without nd-neighbor-...)
    }
  }
"""


NF_TABLES = 10 << 8


def messages(datagram: bytes) -> list[tuple[int, int, bytes]]:
    """Kind and flags of each message, and all that comes after them: sequence number, port id, attributes."""
    found = []
    position = 0
    while position < len(datagram):
        length, kind, flags = struct.unpack_from("=IHH", datagram, position)
        found.append((kind, flags, datagram[position + 8 : position + length]))
        position += length
    return found


def without_notes(kind: int, flags: int, rest: bytes) -> tuple[int, int, bytes]:
    """A set without what nft notes in it for itself, which is the last attribute: after the number in the batch."""
    if kind == NF_TABLES | NFT_MSG_NEWSET:
        rest = rest[: rest.rindex(struct.pack("=HH", 8, 10)) + 8]
    return kind, flags, rest


def names(filters: frozenset[Filter]) -> list[str]:
    return [chain.name for chain in layout(filters).chains]


@pytest.mark.skipif(sys.byteorder != "little", reason="little-endian machines only: recorded on one")
def test_the_bytes_are_those_of_nft() -> None:
    ours = messages(encode_batch(replacement("dtun-home", layout(FILTERS))))
    theirs = messages(SENT_BY_NFT)
    # nft does not ask whether all is done.
    kind, flags, rest = theirs[-2]
    theirs[-2] = kind, flags | NLM_F_ACK, rest
    ours, theirs = ([without_notes(*one) for one in both] for both in (ours, theirs))
    assert ours == theirs


def test_without_filters_the_table_is_made_and_deleted() -> None:
    ours = messages(encode_batch(replacement("dtun-home", layout(frozenset()))))
    begin, new, delete, end = messages(SENT_BY_NFT)[:3] + messages(SENT_BY_NFT)[-1:]
    kind, flags, rest = delete
    assert ours[:3] == [begin, new, (kind, flags | NLM_F_ACK, rest)]
    assert ours[3][:2] == end[:2]
    assert len(ours) == 4


def test_there_are_only_chains_with_rules() -> None:
    assert names(frozenset()) == []
    assert names(frozenset({Masquerade("dtun-home", "eth0")})) == ["nat_postrouting"]
    assert names(frozenset({ClampMss("dtun-home", 1400)})) == ["clamp_forward"]
    assert names(frozenset({DropOtherTrafficToServer(ip_address("192.0.2.1"), 1)})) == [
        "guard_output",
        "guard_forward",
    ]
    assert (
        names(frozenset({DropUnreachableIPv6()}))
        == names(frozenset({DropIPv6OutsideTunnel()}))
        == ["guard_output"]
    )
    assert names(FILTERS) == ["nat_postrouting", "clamp_forward", "guard_output", "guard_forward"]


@given(st.permutations(sorted(FILTERS, key=repr)))
def test_the_order_of_the_filters_makes_no_difference(filters: list[Filter]) -> None:
    assert layout(filters) == layout(FILTERS)


def test_all_ports_of_a_server_are_accepted_before_the_rest_is_dropped() -> None:
    server = ip_address("192.0.2.1")
    (output, forward) = layout(
        [DropOtherTrafficToServer(server, 1), DropOtherTrafficToServer(server, 2)]
    ).chains
    assert output.rules == forward.rules
    accept_one, drop_of_one = layout([DropOtherTrafficToServer(server, 1)]).chains[0].rules
    accept_two, drop_of_two = layout([DropOtherTrafficToServer(server, 2)]).chains[0].rules
    assert drop_of_one == drop_of_two
    assert output.rules == (accept_one, accept_two, drop_of_one)


def test_one_more_device_is_a_few_more_elements_however_many_there_are() -> None:
    def devices(*numbers: int) -> list[Filter]:
        clamps = [ClampMss(f"dtun{number}", 1400) for number in numbers]
        return [*clamps, *(Masquerade(f"dtun{number}", "eth0") for number in numbers)]

    before = layout(devices(*range(1000)))
    kinds = []
    for after in (layout(devices(*range(1001))), layout(devices(*range(999)))):
        changes = update("dtun-home", before, after)
        assert changes is not None
        assert sum(len(change.attributes) for change in changes) < 500
        kinds.append([change.kind for change in changes])
    assert kinds == [[NFT_MSG_NEWSETELEM] * 3, [NFT_MSG_DELSETELEM] * 3]
    assert update("dtun-home", before, before) == []


@pytest.mark.parametrize(
    "other",
    [
        FILTERS - {Masquerade("dtun-home", "eth0"), Masquerade("fifteen-letters", "eth0.100")},
        FILTERS - {DropOtherTrafficToServer(ip_address("2001:db8::1"), 4433)},
        FILTERS | {DropIPv6OutsideTunnel((ip_network("2001:db8:2::/64"),))},
        frozenset(),
    ],
)
def test_where_more_than_devices_has_changed_all_is_made_anew(other: frozenset[Filter]) -> None:
    assert update("dtun-home", layout(FILTERS), layout(other)) is None
    assert update("dtun-home", layout(other), layout(FILTERS)) is None


def test_a_loss_is_a_deletion_in_our_table_and_in_no_other() -> None:
    def deleted(table: str, kind: int = NFT_MSG_DELSETELEM, family: int = NFPROTO_INET) -> bytes:
        body = struct.pack(">BBH", family, 0, 0) + text(1, table) + text(2, "clamped4")
        return struct.pack("=IHHII", 16 + len(body), NF_TABLES | kind, 0, 0, 7) + body

    other = deleted("dtun-hom") + deleted("dtun-home2") + deleted("dtun-home", family=2)
    other += deleted("dtun-home", NFT_MSG_NEWSETELEM)
    assert not deletes_from("dtun-home", other)
    assert deletes_from("dtun-home", other + deleted("dtun-home"))


@given(st.binary(max_size=100))
def test_notifications_that_make_no_sense_are_no_loss(data: bytes) -> None:
    assert not deletes_from("dtun-home", data)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 200), st.booleans())))
def test_answers_are_read_whatever_they_carry(said: list[tuple[int, int, bool]]) -> None:
    datagram = b""
    for sequence, error, described in said:
        # NLMSG_ERROR, or the description of a table (NFT_MSG_NEWTABLE) with some attributes.
        body = bytes(24) if described else struct.pack("=i", -error) + bytes(16)
        datagram += struct.pack("=IHHII", 16 + len(body), 0x0A00 if described else 2, 0, sequence, 7) + body
    expected = [Reply(sequence, 0 if described else error) for sequence, error, described in said]
    assert list(replies(datagram)) == expected


@pytest.mark.parametrize(
    ("sequence", "number", "told"),
    [
        (0, errno.EPERM, NOT_PERMITTED),
        (0, errno.EOPNOTSUPP, "this kernel has no nf_tables (CONFIG_NF_TABLES): load that module, or"),
        (0, errno.EPROTONOSUPPORT, "this kernel has no nf_tables"),
        (0, errno.ENOMEM, "the kernel refuses the packet filter inet dtun: Cannot allocate memory"),
        (1, errno.EAFNOSUPPORT, "this kernel cannot have a table of family inet: "),
        (1, errno.EPERM, "the packet filter inet dtun belongs to another process; see `nft list tables`"),
        (4, errno.ENOENT, "this kernel cannot masquerade (modules nft_chain_nat and nft_masq"),
        (5, errno.EOPNOTSUPP, "this kernel cannot lower TCP segment sizes: "),
        (
            7,
            errno.ENOSPC,
            "the kernel refuses to guard the server's address in the packet filter inet dtun: No",
        ),
        (6, errno.EOPNOTSUPP, "this kernel cannot keep IPv6 in the tunnel (Linux 5.1 or later): "),
        (99, errno.EINVAL, "the kernel refuses the packet filter inet dtun: Invalid argument"),
    ],
)
def test_a_refusal_says_what_the_kernel_lacks(sequence: int, number: int, told: str) -> None:
    sent = replacement("dtun", layout(FILTERS))
    assert explain_refusal("dtun", sent, Reply(sequence, number)).startswith(told)


class HeldSocket:
    """A netlink socket that acknowledges each batch, once it is released."""

    def __init__(self) -> None:
        self.sending = threading.Event()
        self.released = threading.Event()
        self.batches = 0
        self._replies: list[bytes] = []

    def getsockopt(self, *_: object) -> int:
        return 1 << 30

    def getsockname(self) -> tuple[int, int]:
        return 7, 0

    def bind(self, _: object) -> None: ...

    def close(self) -> None: ...

    def sendto(self, _data: bytes, _address: object) -> None:
        self.sending.set()
        assert self.released.wait(10)
        self.batches += 1
        self._replies.append(struct.pack("=IHHIIi", 36, 2, 0, 1, 7, 0) + bytes(16))

    def recv(self, _: int) -> bytes:
        if not self._replies:
            raise BlockingIOError
        return self._replies.pop()


async def test_a_removal_during_an_apply_makes_the_next_one_replace_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = HeldSocket()
    noticed: list[Callable[[], None]] = []

    class Monitor:
        def __init__(self, _table: str, _ports: object, removed: Callable[[], None]) -> None:
            noticed.append(removed)

        def close(self) -> None: ...

    monkeypatch.setattr(firewall, "open_socket", lambda _: kernel)
    monkeypatch.setattr(firewall, "FirewallMonitor", Monitor)
    told: list[None] = []
    table = firewall.Firewall("dtun-home", lambda: told.append(None))
    applying = asyncio.create_task(table.apply(FILTERS))
    await asyncio.to_thread(kernel.sending.wait, 10)
    noticed[0]()
    kernel.released.set()
    await applying
    await table.apply(FILTERS)
    assert kernel.batches == 2
    await table.apply(FILTERS)
    assert kernel.batches == 2, "nothing has changed since"
    assert told == [None]
    table.close()
