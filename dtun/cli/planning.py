"""`dtun plan` and `dtun explain`: their arguments. plan.py does the work."""

import argparse

from dtun.cli.arguments import Commands, add_command, add_config, load_config


def add_plan(commands: Commands) -> None:
    command = add_command(
        commands,
        _plan,
        "plan",
        "show what a start would change on this host",
        "Show what a start would change in this host's network now, and what is in its way, without touching\n"
        "anything. The exit code is 1 if there is a conflict.",
    )
    add_config(command)


def _plan(arguments: argparse.Namespace) -> int:
    from dtun.cli.plan import plan

    return plan(load_config(arguments))


def add_explain(commands: Commands) -> None:
    command = add_command(
        commands,
        _explain,
        "explain",
        "say where packets to an address go, and why",
        "Say where packets to an address go now, by which route, and what in the configuration decides that.",
    )
    add_config(command)
    command.add_argument("address", metavar="ADDRESS", help="an IPv4 or IPv6 address")


def _explain(arguments: argparse.Namespace) -> int:
    from dtun.cli.plan import explain, parse_address

    try:
        address = parse_address(arguments.address)
    except ValueError as error:
        arguments.fail(str(error))
    return explain(load_config(arguments), address)
