"""Name servers for some domains, by files in /etc/resolver (resolver(5)), each with the name of its domain.

    # dtun dtun0: goes when the tunnel does
    nameserver 10.86.0.1

The first line marks our files, so that they can be removed after a crash; other files are never changed. A search list,
or name servers for every name, cannot be set this way: docs/decisions/0002-dns-on-macos.md.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dtun.network.state import Dns

DIRECTORY: Final = Path("/etc/resolver")

NOT_EVERY_NAME: Final = (
    "macOS uses these name servers only for listed domains: list them in `dns_domains`, "
    "or set the name servers in the `up` hook"
)


class ResolverError(Exception):
    """The name servers cannot be set; the text says why."""


def refusal(dns: Dns) -> str | None:
    """Why macOS cannot use these name servers; None if it can."""
    domains = _domains(dns)
    return NOT_EVERY_NAME if not domains or "." in domains else None


class Resolver:
    """The files of the dtun process called `instance`."""

    def __init__(self, instance: str, directory: Path | None = None) -> None:
        self._directory = directory or DIRECTORY
        self._mark = f"# dtun {instance}: goes when the tunnel does\n"

    def apply(self, dns: Dns) -> None:
        """Use these name servers for these domains, and for no others.

        Raises:
            ResolverError: there is no domain, or "every name" is among them; another program's file exists, or the
                directory cannot be written.
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
                        f"{path} is not a file of dtun; remove it, or remove {domain} from `dns_domains`"
                    )
                if present.pop(path, "") != text:
                    self._write(path, text)
            for path in present:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise ResolverError(
                f"cannot write to {self._directory}: {(error.strerror or str(error)).lower()}"
            ) from None

    def clear(self) -> None:
        """Remove all of our files, including those of an earlier process.

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
        """Written beside the directory and renamed into it: every file name in it counts as a domain."""
        draft = self._directory.with_name(f".{self._directory.name}.dtun.{os.getpid()}")
        draft.write_text(text, "utf-8")
        draft.chmod(0o644)
        draft.replace(path)


def _domains(dns: Dns) -> set[str]:
    return {domain.removeprefix("~").lower() for domain in dns.domains}
