"""The `dtun` command."""

from collections.abc import Sequence

from dtun.cli.arguments import parser
from dtun.cli.output import complain
from dtun.errors import DtunError

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    arguments = parser().parse_args(argv)
    # Late, so that --help and mistakes on the command line are answered at once.
    from dtun.cli import commands  # noqa: PLC0415

    try:
        return commands.run(arguments)
    except DtunError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
