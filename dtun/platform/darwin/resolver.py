"""Name servers for some domains, by files in /etc/resolver (resolver(5)): one for each domain, called like it.

    # dtun dtun0: goes when the tunnel does
    nameserver 10.86.0.1

Our files are known by their first line, so that they can be removed after a crash, and others' are never touched. A
search list, or name servers for every name, cannot be had this way: docs/decisions/0002-dns-on-macos.md.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dtun.network.state import Dns

DIRECTORY: Final = Path("/etc/resolver")

NOT_EVERY_NAME: Final = (
    "macOS asks other name servers only for the domains that are named: list them in `dns_domains`, "
    "or set the name servers in the `up` hook"
)


class ResolverError(Exception):
    """It cannot be done; the text says why, for a person."""


def refusal(dns: Dns) -> str | None:
    """Why macOS cannot do this; None if it can."""
    domains = _domains(dns)
    return NOT_EVERY_NAME if not domains or "." in domains else None


class Resolver:
    """The files of one dtun process, which is called `instance`."""

    def __init__(self, instance: str, directory: Path | None = None) -> None:
        self._directory = directory or DIRECTORY
        self._mark = f"# dtun {instance}: goes when the tunnel does\n"

    def apply(self, dns: Dns) -> None:
        """Have exactly these name servers asked for exactly these domains.

        Raises:
            ResolverError: there are none, or "every name" is among them; a file of somebody else is in the way, or
                the directory cannot be written.
        """
        if reason := refusal(dns):
            raise ResolverError(reason)
        text = self._mark + "".join(f"nameserver {server}\n" for server in dns.servers)
        try:
            self._directory.mkdir(mode=0o755, exist_ok=True)
            present = dict(self._ours())
            for domain in sorted(_domains(dns)):
                path = self._directory / domain
                if path.exists() and path not in present:
                    raise ResolverError(
                        f"{path} is somebody else's; remove it, or take {domain} out of `dns_domains`"
                    )
                if present.pop(path, "") != text:
                    self._write(path, text)
            for path in present:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise ResolverError(
                f"cannot write in {self._directory}: {(error.strerror or str(error)).lower()}"
            ) from None

    def clear(self) -> None:
        """Remove all of our files, also those of a process before this one.

        Raises:
            ResolverError: one cannot be removed.
        """
        try:
            for path, _ in self._ours():
                path.unlink(missing_ok=True)
        except OSError as error:
            raise ResolverError(
                f"cannot remove our files in {self._directory}: {(error.strerror or str(error)).lower()}"
            ) from None

    def _ours(self) -> Iterator[tuple[Path, str]]:
        if not self._directory.is_dir():
            return
        for path in sorted(self._directory.iterdir()):
            try:
                text = path.read_text("utf-8") if path.is_file() else ""
            except (UnicodeDecodeError, FileNotFoundError, PermissionError):
                continue
            if text.startswith(self._mark):
                yield path, text

    def _write(self, path: Path, text: str) -> None:
        """Renamed into place, from beside the directory: every name in it is taken for a domain."""
        draft = self._directory.with_name(f".{self._directory.name}.dtun.{os.getpid()}")
        draft.write_text(text, "utf-8")
        draft.chmod(0o644)
        draft.replace(path)


def _domains(dns: Dns) -> set[str]:
    return {domain.removeprefix("~").lower() for domain in dns.domains}
