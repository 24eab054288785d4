"""The command line of what is found out before a start, or cleaned up after an end: plan, explain, schema, down."""

from dtun.cli.parsers import Commands, add_command, add_config


def add_planning(commands: Commands) -> None:
    plan = add_command(
        commands,
        "plan",
        "show what a start would change on this host",
        "Show what a start would change in this host's network now, and what is in its way, without touching\n"
        "anything. The exit code is 1 if there is a conflict.",
    )
    add_config(plan)
    explain = add_command(
        commands,
        "explain",
        "say where packets to an address go, and why",
        "Say where packets to an address go now, by which route, and what in the configuration decides that.",
    )
    add_config(explain)
    explain.add_argument("address", metavar="ADDRESS", help="an IPv4 or IPv6 address")
    down = add_command(
        commands,
        "down",
        "end a tunnel, and remove all that is left of it",
        "Have the running dtun stop; if none runs, remove what a killed one has left in the kernel, the kill\n"
        "switch included.",
    )
    add_config(down)
    add_command(
        commands,
        "schema",
        "print the JSON Schema of the configuration, for editors",
        "Print the JSON Schema of the configuration, for editors.",
    )
