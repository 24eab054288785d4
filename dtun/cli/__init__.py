"""The `dtun` command."""

import argparse
from collections.abc import Sequence

from dtun import __version__
from dtun.cli import keys, planning, run, running
from dtun.cli.arguments import EXIT_CODES
from dtun.cli.output import complain
from dtun.errors import DtunError
from dtun.service import log

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of this process); returns the exit code.

    Raises:
        SystemExit: for --help and --version, and with code 2 after a mistake on the command line.
    """
    arguments = parse(argv)
    try:
        exit_code: int = arguments.run(arguments)
    except DtunError as error:
        if getattr(arguments, "log_format", None) == "json" and log.logger.handlers:
            log.logger.error("%s", error)
        else:
            complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return exit_code


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command and its options.

    Of the result, `run(arguments)` runs the command and returns its exit code; `fail(message)` shows the usage of the
    command and exits with 2.

    Raises:
        SystemExit: `argv` has a mistake or asks for help; the message was printed.
    """
    arguments, rest = parser().parse_known_args(argv)
    options = [word for word in rest if word.startswith("-")]
    if options:
        # Without their values: one may be a key.
        names = (word.partition("=")[0] if word.startswith("--") else word[:2] for word in options)
        arguments.fail(f"unknown option {', '.join(names)}")
    if rest:
        arguments.fail("there is an argument too many")
    return arguments


def parser() -> argparse.ArgumentParser:
    """The parser of the command line, with all commands."""
    top = argparse.ArgumentParser(
        prog="dtun",
        description="An encrypted IP tunnel over UDP: DTLS 1.2 with pre-shared keys, one YAML file.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"dtun {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run.add_server(commands)
    run.add_client(commands)
    run.add_check(commands)
    keys.add_genkey(commands)
    running.add_status(commands)
    running.add_reload(commands)
    running.add_kick(commands)
    planning.add_plan(commands)
    planning.add_explain(commands)
    running.add_down(commands)
    keys.add_schema(commands)
    return top
