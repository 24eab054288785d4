"""Everything that dtun could change on a host, as lines to compare, one thing each."""

import json
from collections.abc import Iterable
from pathlib import Path

from topology import Host

# The order of what this prints is the order of _KINDS.
_SCRIPT = """
for what in "-4 route show table all" "-6 route show table all" "-4 rule" "-6 rule" link address; do
  ip -j $what; echo; echo "@"
done
nft -j list ruleset; echo; echo "@"
sysctl -a -r '^net\\.ipv[46]\\.(ip_forward|conf)' 2>/dev/null
"""
_KINDS = ("route", "route -6", "rule", "rule -6", "link", "address", "nft")

# Counts and times, which go on by themselves.
_VOLATILE = frozenset(
    {"handle", "expires", "valid_life_time", "preferred_life_time", "metainfo", "packets", "bytes"}
)


def snapshot(host: Host, *directories: Path) -> set[str]:
    """Routes of all tables, rules, links, addresses, the packet filter, settings of IP, and files in `directories`."""
    *parts, sysctls = host.run("sh", "-c", _SCRIPT).split("@\n")
    lines = set(sysctls.splitlines())
    for kind, part in zip(_KINDS, parts, strict=True):
        things = json.loads(part or "[]")
        for thing in things["nftables"] if kind == "nft" else things:
            if thing and "metainfo" not in thing:
                lines.add(f"{kind} {json.dumps(_steady(thing), sort_keys=True)}")
    return lines | {f"file {path}" for path in _files(directories)}


def _steady(thing: object) -> object:
    if isinstance(thing, dict):
        return {name: _steady(value) for name, value in thing.items() if name not in _VOLATILE}
    return [_steady(value) for value in thing] if isinstance(thing, list) else thing


def _files(directories: Iterable[Path]) -> Iterable[Path]:
    return (path for directory in directories if directory.exists() for path in directory.rglob("*"))


def changes(before: set[str], after: set[str]) -> str:
    """What differs, for a person; empty if nothing does."""
    gone = [f"- {line}" for line in sorted(before - after)]
    come = [f"+ {line}" for line in sorted(after - before)]
    return "\n".join(gone + come)
