"""What the commands' parsers have in common."""

import argparse
from pathlib import Path
from typing import TypeAlias

DEFAULT_CONFIG = Path("/etc/dtun.yaml")

EXIT_CODES = """\
exit codes:
  0    done; ended as told
  1    an unexpected failure; status --check: a client is not connected
  2    a mistake on the command line
  69   something is missing or taken: /dev/net/tun, a port, a running dtun
       (status, reload, kick), the name of a new key file (genkey)
  77   a right is missing: root or CAP_NET_ADMIN
  78   the configuration or a key is wrong; a restart does not help
  130  interrupted (Ctrl-C) before it was up
"""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name


def add_command(commands: Commands, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(fail=command.error)
    return command


def add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help=f"the configuration (default: {DEFAULT_CONFIG})"
    )


def add_socket(command: argparse.ArgumentParser) -> None:
    command.add_argument("--socket", type=Path, metavar="PATH", help="the control socket to ask")
