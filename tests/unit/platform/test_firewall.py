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
    DropOtherTrafficToServer,
    DropOutsideTunnel,
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
        DropOutsideTunnel(4, (ip_network("10.0.0.0/16"),)),
        DropOutsideTunnel(6, (ip_network("2001:db8:1::/64"), ip_network("fd00::/8"))),
    }
)

SENT_BY_NFT = zlib.decompress(
    base64.b64decode(
        "eNrtW72T20QU313LXzr7zncxYJKDmMQkF/AFB8wNw1xFTQFMyswcJtLFJv7CJ89B5yIzUFBQpKCkTP4DCoqUFPkDUl5BQUeqdJx5u3ory7KRtY"
        "ovVmJrRrYlvf3tvt/v7dfTXZ4QkiOUuA69LD6pc5d/r8OnYfXbu/VOy4TrFGHiWQlOBrbMx1bixQLg3YIzplNN87HNA1K7Zh10O0dWr9O3Gu07"
        "UD7J78F3XBTLE22Qsj3QENv4GrHjPthbgH27WWt1Dw47veNaz4B7a4B92GhaZo9Mw2ccfzgcfivxEz74m4B/pw+4B9Dwbt8is/FjiP9M4idntN"
        "/GV27/szpcpAE/5YOfA9tW7ei7vtmrGaYBeLaqKcIV0xuIX0wRHevJEvGIu6FlBeqv8JmBetJK9QgQeovEBmVCBztwljxl+GFa9Yo7mMuEObaH"
        "jUPLNNu7TdMCLo6E7fUbFcf+Afqv+7QrC+0S8WEaVdtv4X8K23cN/c+lSAJjL4kcC1T2meCDI1ONR2VsnQgeaIKIuNHOE8E/3bKfM82OYf47gZ"
        "2ijvytKbVTFGZl4I/zUYAzP4W/DPCVgPvxL0Z8ZILVsxeCj9g8+cgqtdMOysB87NtjE+dj3aceHerpdM12dcSFhnUlkQsNfYc4y6InQBC1fdgI"
        "jC0wtSfQft52rItmxG975IY+NJDXvMYC2HrtYFgGO82xe3jK7eITdg+H3C7h2J0IvOSE3QmcOZJy7P4Zcrv0hN1TuNgmumMH489Qhxihtr4O17"
        "kAfOxNcp0axZ3gOu7m+gTjZTMwtsCMPwD+Si6uZcx4j23gXT4r0uzvbpOSSwOPDR2V15zy/3qwSy5tpM2px+Yx7xs6zWz5zqFsYg69D/Vy/9Jg"
        "2zKtGrHtBjh/JjCuqI9NUs4pVbBZg9/NTuduv8vb7dhQvt6YNrbnJS48E2JCmT/Ql3O+cx6bmLPv+fuSk76UMf5ut7qkKJ7b92VbM6BXHO7xsa"
        "gCtrzuRqtlGo2aZaLW4/1thFGndtvzim2v0Lm0nbjbzvWAvka6tR+anZqBeozZM4yrrNTjcyzzTcM6bhyZZH8KPziuk1H/1pw6MxCrceQmKM8s"
        "BM87yPNrijw/9Y+RDVWemeifs/vPvqdvlF19Q/KY5fVNmb9lWfN7q270ZFkxp9I4YLCRFkyWQY0cnl5fME/62fA0Nq/Pg6c3oh1PyajEUyHa8Z"
        "RcdDw9Rp7e9N0Xsol94X06/3gKMA9ILnJyjRkEn997RBid57y1qTZvsdEeZzY+X9Nvfqk+1zxBLc8ravkbnX/MK2hZQG5yn7jwy1Pw+R7BWZOO"
        "jqXR9cJK1+jq+lV4XbdXuobW9VM1XZ39XFD8H0l4Xd9a6RpZXX8Koes26vq2oq5/kZdvraTIDZHr7YuK3JzFevtFxrwqTz8jT0VFnm5GZGwwPH"
        "mXm7PzLrkCaMy5Gz4azwXyXO60HGVQLU4H4+VU+7PU4p1l1GJjvloM2fNp8SfmUi8pavGL//jh7K+D+tHsPJ8fBYypy4p+nPj7cUHVD6jOk5v/"
        "X+y0Srzyte7pMDwvpQXzctzomaKOiPDSRF7eVeSlSl9onuqVWJdLrq+suD7ztXIRub6qyPXfEVkrVzz52KIrH6vDfe+7blV+5LvDHUV+7p0BP6"
        "prWKnttQVrG3bdFERb97v1sNq+t2Bt9RDayvcB7894b+L9O67V+4Do5o3Lilqu8lAvh667K11fqfcBMr94XVHXZcovfqDIzbLlF+U+u6LI07Lk"
        "H24smJeo5R/kWv5DRV6WbZ/2kSI/UdqnVResbdT3aR8vWNsw+7S82ENSsuf636j/ANHi1LU="
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
    set open4 { type ipv4_addr; flags interval;
      elements = { 10.0.0.0/16, 169.254.0.0/16, 224.0.0.0/24, 239.255.0.0/16, 255.255.255.255 }
    }
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
      ip daddr @open4 accept
      meta nfproto ipv4 drop
      ip6 daddr @open6 accept
      meta nfproto ipv6 drop
    }
    chain guard_forward { type filter hook forward priority -10; policy accept;
      (the same without what is about fe80::, ff02::, lo and nd-neighbor-...)
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
    assert names(frozenset({DropUnreachableIPv6()})) == ["guard_output"]
    assert names(frozenset({DropOutsideTunnel(6)})) == ["guard_output", "guard_forward"]
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
        FILTERS | {DropOutsideTunnel(6, (ip_network("2001:db8:2::/64"),))},
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
            "the kernel refuses to keep packets in the tunnel (Linux 5.1 or later) in the packet filter inet dtun: No",
        ),
        (6, errno.EOPNOTSUPP, "this kernel cannot keep packets in the tunnel (Linux 5.1 or later): "),
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
