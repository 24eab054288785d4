"""Start dtun without some of what makes it fast, to measure what that is worth.

    without.py WORDS ARGUMENTS-OF-DTUN...

WORDS, separated by commas: `offload` (one packet for each read and write of TUN and UDP), `record-offload` (records
stay in Mbed TLS).
"""

import sys
from collections.abc import Iterable, Iterator
from functools import partial

from dtun.cli import main
from dtun.dataplane.datagrams import Datagrams
from dtun.dtls import key_takeover
from dtun.dtls.records import SessionKeys
from dtun.dtls.status import ExportError
from dtun.dtls.suites import Suite
from dtun.platform.linux import tun
from dtun.session import link

WORDS = ("offload", "record-offload")


def replacements(words: Iterable[str]) -> Iterator[tuple[object, str, object]]:
    """What to replace in dtun to turn these off: owner, attribute, new value."""
    if "offload" in words:
        yield tun, "IFF_VNET_HDR", 0
        yield tun.LinuxTun, "vnet_header", False
        yield tun.LinuxTun, "find_offloads", lambda _: None
        yield link, "Datagrams", partial(Datagrams, batches=False)
    if "record-offload" in words:
        yield key_takeover, "read_keys", _no_keys


def _no_keys(_state: bytes, _suite: Suite) -> SessionKeys:
    raise ExportError("turned off")


if __name__ == "__main__":
    without = sys.argv[1].split(",")
    if unknown := set(without) - set(WORDS):
        sys.exit(f"{', '.join(sorted(unknown))}: one of {', '.join(WORDS)} was expected")
    for owner, name, value in replacements(without):
        setattr(owner, name, value)
    sys.exit(main(sys.argv[2:]))
