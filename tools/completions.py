"""Completions of the command line for bash, zsh and fish.

The installer generates them with a plain Python, so they need no package.
"""

from collections.abc import Iterator

from tools.commandline import Command, Option, commands

# The ids of the running server. Clients choose them if it accepts any: none may have a character that a shell expands.
IDS = """dtun status --json 2>/dev/null | grep -o '"id": "[A-Za-z0-9._@-]*"' | cut -d'"' -f4"""


def bash() -> str:
    """bash-completion/completions/dtun"""
    cases = "".join(_bash_case(command) for command in commands())
    names = " ".join(command.name for command in commands())
    return f"""\
# bash completion for dtun
_dtun() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} options= files= choices= names=
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "{names} --help --version" -- "$word")
        return
    fi
    case ${{COMP_WORDS[1]}} in
{cases}    esac
    if [[ " $choices " == *" $before="* ]]; then
        choices=${{choices#*"$before="}}
        # The choices of an option are joined by "|".
        mapfile -t COMPREPLY < <(compgen -W "$(tr '|' ' ' <<< "${{choices%% *}}")" -- "$word")
    elif [[ " $files " == *" $before "* || ( $names == files && $word != -* ) ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
    elif [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
    elif [[ $names == ids ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$({IDS})" -- "$word")
    fi
}}
complete -F _dtun dtun
"""


def _bash_case(command: Command) -> str:
    files = " ".join(flag for option in command.options if option.takes_file for flag in option.flags)
    choices = " ".join(
        f"{flag}={'|'.join(option.choices)}"
        for option in command.options
        if option.choices
        for flag in option.flags
    )
    return (
        f"        {command.name})\n"
        f'            options="{" ".join(command.flags)}"\n'
        f'            files="{files}"\n'
        f'            choices="{choices}" names={_names(command)};;\n'
    )


def _names(command: Command) -> str:
    """What an argument without an option is: "files", "ids" of clients, or nothing that is known."""
    words = [option for option in command.options if not option.flags]
    if any(option.takes_id for option in words):
        return "ids"
    return "files" if any(option.takes_file for option in words) else ""


def zsh() -> str:
    """site-functions/_dtun"""
    names = " ".join(f"'{_zsh(command.name)}:{_zsh(command.summary)}'" for command in commands())
    cases = "".join(
        f"    {command.name}) _arguments {' '.join(_zsh_options(command))};;\n" for command in commands()
    )
    return f"""\
#compdef dtun
_dtun_ids() {{ compadd -- $({IDS}) }}
local -a names
names=({names})
if (( CURRENT == 2 )); then
    _describe command names
    return
fi
local name=$words[2]
shift words
(( CURRENT-- ))
case $name in
{cases}esac
"""


def _zsh_options(command: Command) -> Iterator[str]:
    for option in command.options:
        for flag in option.flags:
            yield f"'{flag}[{_zsh(option.help)}]{_zsh_value(option)}'"
        if not option.flags:
            optional = "" if option.required else ":"
            yield f"':{optional}{_zsh(option.value)}:{_zsh_argument(option)}'"


def _zsh_argument(option: Option) -> str:
    if option.takes_id:
        return "_dtun_ids"
    return "_files" if option.takes_file else " "


def _zsh_value(option: Option) -> str:
    if option.choices:
        return f":value:({' '.join(option.choices)})"
    if option.takes_file:
        return f":{option.value}:_files"
    return f":{option.value}:" if option.value else ""


def _zsh(text: str) -> str:
    for character in "\\[]:":
        text = text.replace(character, "\\" + character)
    return text.replace("'", "'\\''")


def fish() -> str:
    """vendor_completions.d/dtun.fish"""
    lines = ["complete -c dtun -f"]
    for command in commands():
        lines.append(
            f"complete -c dtun -n __fish_use_subcommand -a {command.name} -d {_fish(command.summary)}"
        )
        seen = f"-n '__fish_seen_subcommand_from {command.name}'"
        lines += [f"complete -c dtun {seen} {_fish_option(option)}" for option in command.options]
    return "\n".join(lines) + "\n"


def _fish_option(option: Option) -> str:
    words = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags]
    if option.choices:
        words.append(f"-x -a {_fish(' '.join(option.choices))}")
    elif option.takes_id:
        words.append(f"-x -a {_fish(f'({IDS})')}")
    elif option.takes_file:
        words.append("-F" if not option.flags else "-r -F")
    elif option.value:
        words.append("-x")
    return " ".join([*words, "-d", _fish(option.help)])


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
