"""Arguments that several commands share.

The files of the commands are imported for `dtun --help`, and by the installer, which runs without dtun's packages.
So they import everything else only when a command runs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from dtun.config import Config

DEFAULT_CONFIG = Path("/etc/dtun.yaml")

EXIT_CODES = """\
exit codes:
  0    done; ended as told
  1    an unexpected failure; status --check: a client is not connected;
       plan: there is a conflict; reload: a part of it does not work
  2    a mistake on the command line
  69   something is missing or taken: /dev/net/tun, a port, a running dtun
       (status, reload, kick), the name of a new key file (genkey)
  77   a right is missing: root or CAP_NET_ADMIN
  78   the configuration or a key is wrong; a restart does not help
  130  interrupted (Ctrl-C) before it was up
"""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name


def add_command(
    commands: Commands, run: Callable[[argparse.Namespace], int], name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    """Add a command that `run` executes; it returns the exit code."""
    command = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=run, fail=command.error)
    return command


def add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help=f"the configuration (default: {DEFAULT_CONFIG})"
    )


def add_socket(command: argparse.ArgumentParser) -> None:
    command.add_argument("--socket", type=Path, metavar="PATH", help="the control socket to ask")


def one_file(arguments: argparse.Namespace, option: str, given: Path | None) -> Path | None:
    """The file of a command that accepts it with `option` or without."""
    if given is not None and arguments.file is not None:
        arguments.fail(f"a file is given twice; leave out either {arguments.file} or {option}")
    return given or arguments.file


def load_config(arguments: argparse.Namespace) -> "Config":
    """The configuration of a server or a client; its warnings are printed.

    Raises:
        ConfigErrors: the configuration is wrong.
    """
    from dtun.cli.output import warn
    from dtun.config import load

    config = load(arguments.config or DEFAULT_CONFIG, credentials=False)
    warn(config.warnings)
    return config
