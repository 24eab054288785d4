"""The `dtun` command."""

from collections.abc import Sequence

from dtun.cli.arguments import parse
from dtun.cli.output import complain
from dtun.errors import DtunError
from dtun.service import log

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code.

    Raises:
        SystemExit: for --help and --version, and with code 2 after a mistake on the command line.
    """
    arguments = parse(argv)
    try:
        # Late, so that --help and mistakes on the command line are answered at once.
        from dtun.cli import commands  # noqa: PLC0415

        return commands.run(arguments)
    except DtunError as error:
        if getattr(arguments, "log_format", None) == "json" and log.logger.handlers:
            log.logger.error("%s", error)
        else:
            complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
