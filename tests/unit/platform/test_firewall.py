"""Filters as nf_tables' bytes, compared with what nft(8) sends for the same; what the kernel's answers mean."""

import base64
import errno
import struct
import sys
import zlib
from ipaddress import ip_address

import pytest
from hypothesis import given, strategies as st

from dtun.network.state import Clamp, Filter, Guard, Masquerade
from dtun.platform.linux.firewall import NOT_PERMITTED, explanation
from dtun.platform.linux.firewall_rules import chains, replacement
from dtun.platform.linux.firewall_wire import NLM_F_ACK, Answer, answers, batch

FILTERS: frozenset[Filter] = frozenset(
    {
        Masquerade("dtun-home", "eth0"),
        Masquerade("fifteen-letters", "eth0.100"),
        Clamp("dtun-home", 1400),
        Guard(ip_address("192.0.2.1"), 4433),
        Guard(ip_address("2001:db8::1"), 4434),
        Guard(ip_address("2001:db8::1"), 4433),
    }
)

SENT_BY_NFT = zlib.decompress(
    base64.b64decode(
        "eNrtmr9u00Acx393sRPXcdukGAjQoUMHhhYFiQGhjIwMwIwUTO00RvlHclFhy4BEH4AH4DEYGPoADIw8AA/A1DX8zj4nVlIc"
        "n2W1+eNISezr77738/dzd/65igkAJSAQeulH3ieZtPLvHfy02bBz3Oy2HTzXgHp/O8Q3xVgaERvo5WLovcF3TieKEhFrolLH"
        "YvVed8D63SFzO6fYv8Db8Fv1upmgjDT/ChShbb8V2mqE9h5qn7Ssdq/e6PbPrL6NbUXUbrgt5vThKn3K9cfj8ftAPx+hX0b9"
        "0yHq1jHx3pDBYv2c0L8M9AsL8vf1pfO/1PA0rxNDi/Seznn/C7UOgYy2MLbtMAv8uJHwPS/GIU8xhh+ftHs4J2gwPgnYVyA3"
        "MmfG8+fYf7ULstoOa1bDk90MtK3BB2+y8L7Ch60b9qHhNpjjdI5bDkN2g9R9ePS4Wo3y4Qf4PuiR843OrZfP0T6UgpyOQrke"
        "zOdKDMxVxTa+nqoYy8d2223Hdi3Gx96f9sE9jI6MkEZTMCxK5l4lqeQO4dyfYKyBxz3rU6tr2chxLh7XoLc7bmvg7Xzkhejz"
        "zmVn7sCB2hX+aODvNKIv+qVMxjRA9Y7B23/j+UwT+HwhfDYkfT4nN7Zn7Moy5GfPMbbI181H1rT7nOk0XsUIOuVABUMq+BCx"
        "5y7ioPDx8timvvRjZzlUQn04gyC2NpOb71MhVm4Bv+015qdfN7+aBL9aOvx20uVXyNbf9a6/3TXmt87r76fgV4qs+elczf81"
        "ml+iNRKjziDiOkriOpQ4+rztAihJsy4qy9VFE9/j6HOu5VfytcxvwbIsyfJbyix1OZYV4U0p7lo/INvfQ49AG8N1L+O6vFxf"
        "J+d6K+OamOszOa4QPJ/G1f8CybmaGdel5XqegOu+4HpbkusfWL1aSdIbeCi8uSPpzV9Y7Tkv61NQb99d8Lw0+z/wrN5e3rqs"
        "Isky2+dXg+u9jOta1dvB/fu+JNdNun8/kPRm0+7fplfHEIyZ/t7gH06ffBs="
    )
)
"""What nft 1.0.6 sends to the kernel in one sendmsg() when it is fed with this, by strace(1):

  add table inet dtun-home
  delete table inet dtun-home
  table inet dtun-home {
    chain nat_postrouting { type nat hook postrouting priority srcnat; policy accept;
      iifname "dtun-home" oifname "eth0" masquerade
      iifname "fifteen-letters" oifname "eth0.100" masquerade
    }
    chain clamp_forward { type filter hook forward priority mangle; policy accept;
      meta l4proto != tcp accept
      tcp flags & (syn | rst) != syn accept
      iifname "dtun-home" meta nfproto ipv4 tcp option maxseg size > 1360 tcp option maxseg size set 1360
      (the same with ipv6 and 1340; both again with oifname)
    }
    chain guard_output { type filter hook output priority -10; policy accept;
      ip daddr 192.0.2.1 udp dport 4433 accept
      ip6 daddr 2001:db8::1 udp dport 4433 accept
      ip6 daddr 2001:db8::1 udp dport 4434 accept
      ip6 daddr 2001:db8::1 icmpv6 type nd-neighbor-solicit accept
      ip6 daddr 2001:db8::1 icmpv6 type nd-neighbor-advert accept
      ip daddr 192.0.2.1 drop
      ip6 daddr 2001:db8::1 drop
    }
    chain guard_forward { type filter hook forward priority -10; policy accept;
      (the same without nd-neighbor-...)
    }
  }
"""


def messages(datagram: bytes) -> list[tuple[int, int, bytes]]:
    """Kind and flags of each message, and all that comes after them: sequence number, port id, attributes."""
    found = []
    position = 0
    while position < len(datagram):
        length, kind, flags = struct.unpack_from("=IHH", datagram, position)
        found.append((kind, flags, datagram[position + 8 : position + length]))
        position += length
    return found


def names(filters: frozenset[Filter]) -> list[str]:
    return [chain.name for chain in chains(filters)]


@pytest.mark.skipif(sys.byteorder != "little", reason="was recorded on a little-endian machine")
def test_the_bytes_are_those_of_nft() -> None:
    ours = messages(batch(replacement("dtun-home", FILTERS)))
    *others, last, end = messages(SENT_BY_NFT)
    # Only the last one differs: nft does not ask whether all is done.
    kind, flags, rest = last
    assert ours == [*others, (kind, flags | NLM_F_ACK, rest), end]


def test_without_filters_the_table_is_made_and_deleted() -> None:
    ours = messages(batch(replacement("dtun-home", frozenset())))
    begin, new, delete, end = messages(SENT_BY_NFT)[:3] + messages(SENT_BY_NFT)[-1:]
    kind, flags, rest = delete
    assert ours[:3] == [begin, new, (kind, flags | NLM_F_ACK, rest)]
    assert ours[3][:2] == end[:2]
    assert len(ours) == 4


def test_there_are_only_chains_with_rules() -> None:
    assert names(frozenset()) == []
    assert names(frozenset({Masquerade("dtun-home", "eth0")})) == ["nat_postrouting"]
    assert names(frozenset({Clamp("dtun-home", 1400)})) == ["clamp_forward"]
    assert names(frozenset({Guard(ip_address("192.0.2.1"), 1)})) == ["guard_output", "guard_forward"]
    assert names(FILTERS) == ["nat_postrouting", "clamp_forward", "guard_output", "guard_forward"]


@given(st.permutations(sorted(FILTERS, key=repr)))
def test_the_order_of_the_filters_makes_no_difference(filters: list[Filter]) -> None:
    assert chains(filters) == chains(FILTERS)


def test_all_ports_of_a_server_are_accepted_before_the_rest_is_dropped() -> None:
    server = ip_address("192.0.2.1")
    (output, forward) = chains([Guard(server, 1), Guard(server, 2)])
    assert output.rules == forward.rules
    accept_one, drop_of_one = chains([Guard(server, 1)])[0].rules
    accept_two, drop_of_two = chains([Guard(server, 2)])[0].rules
    assert drop_of_one == drop_of_two
    assert output.rules == (accept_one, accept_two, drop_of_one)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 200), st.booleans())))
def test_answers_are_read_whatever_they_carry(said: list[tuple[int, int, bool]]) -> None:
    datagram = b""
    for sequence, error, described in said:
        # NLMSG_ERROR, or the description of a table (NFT_MSG_NEWTABLE) with some attributes.
        body = bytes(24) if described else struct.pack("=i", -error) + bytes(16)
        datagram += struct.pack("=IHHII", 16 + len(body), 0x0A00 if described else 2, 0, sequence, 7) + body
    expected = [Answer(sequence, 0 if described else error) for sequence, error, described in said]
    assert list(answers(datagram)) == expected


@pytest.mark.parametrize(
    ("sequence", "number", "told"),
    [
        (0, errno.EPERM, NOT_PERMITTED),
        (0, errno.EOPNOTSUPP, "this kernel has no nf_tables (CONFIG_NF_TABLES): load that module, or"),
        (0, errno.EPROTONOSUPPORT, "this kernel has no nf_tables"),
        (0, errno.ENOMEM, "the kernel refuses the packet filter inet dtun: Cannot allocate memory"),
        (1, errno.EAFNOSUPPORT, "this kernel cannot have a table of family inet: "),
        (1, errno.EPERM, "the packet filter inet dtun belongs to another process; `nft list tables` tells"),
        (4, errno.ENOENT, "this kernel cannot masquerade (modules nft_chain_nat and nft_masq"),
        (5, errno.EOPNOTSUPP, "this kernel cannot lower TCP segment sizes: "),
        (
            6,
            errno.ENOSPC,
            "the kernel refuses to guard the server's address in the packet filter inet dtun: No",
        ),
        (99, errno.EINVAL, "the kernel refuses the packet filter inet dtun: Invalid argument"),
    ],
)
def test_a_refusal_says_what_the_kernel_lacks(sequence: int, number: int, told: str) -> None:
    sent = replacement("dtun", FILTERS)
    assert explanation("dtun", sent, Answer(sequence, number)).startswith(told)
