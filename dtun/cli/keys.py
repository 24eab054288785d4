"""`dtun genkey` and `dtun schema`, which need no configuration."""

import argparse
import json
from pathlib import Path

from dtun.cli.arguments import Commands, add_command, one_file
from dtun.cli.output import say
from dtun.errors import PermissionDeniedError, UnavailableError


def add_genkey(commands: Commands) -> None:
    command = add_command(
        commands,
        _genkey,
        "genkey",
        "make a key",
        "Make a key of 32 random bytes, as base64. Both ends need the same one.",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="a new file for its owner only, in /etc/dtun for the service too; - prints the key (default)",
    )
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the same as -o FILE")
    command.add_argument("--compat", choices=["go"], help="for an original Go dtun: 32 characters of text")


def _genkey(arguments: argparse.Namespace) -> int:
    from dtun.config import keys

    path = one_file(arguments, "-o", arguments.output)
    if path == Path("-"):
        path = None
    text = keys.generate(go=arguments.compat == "go")
    if path is None:
        say(text)
        return 0
    try:
        keys.write_file(path, text)
    except FileExistsError:
        raise UnavailableError(
            f"{path} exists already and is left as it is; remove it first, or choose another"
        ) from None
    except PermissionError:
        raise PermissionDeniedError(
            f"{path} cannot be written by this user; run as root, or choose another"
        ) from None
    except FileNotFoundError:
        raise UnavailableError(
            f"{path} cannot be written: its directory does not exist; make that first, or choose another"
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UnavailableError(f"{path} cannot be written: {reason}; choose another") from None
    return 0


def add_schema(commands: Commands) -> None:
    add_command(
        commands,
        _schema,
        "schema",
        "print the JSON Schema of the configuration, for editors",
        "Print the JSON Schema of the configuration, for editors.",
    )


def _schema(arguments: argparse.Namespace) -> int:
    from dtun.config.schema import schema

    del arguments
    say(json.dumps(schema(), indent=2))
    return 0
