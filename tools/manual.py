"""The manual pages dtun(8) and dtun.yaml(5), from packaging/man, the command line and the example."""

import re
from pathlib import Path

import dtun
from dtun.cli.arguments import EXIT_CODES
from tools.commandline import Command, Option, commands

ROOT = Path(__file__).resolve().parent.parent
FRAMES = ROOT / "packaging" / "man"
EXAMPLE = ROOT / "etc" / "dtun.yaml.example"


def dtun_8() -> str:
    sections = "".join(map(_command, commands()))
    codes = [line.strip() for line in EXIT_CODES.splitlines()[1:]]
    exit_status = re.sub(r"\n(?=[a-z(])", " ", "\n".join(codes))
    rows = [row.split(None, 1) for row in exit_status.splitlines()]
    status = "".join(f".TP\n.B {code}\n{roff(text)}\n" for code, text in rows)
    return _framed("dtun.8", COMMANDS=sections, STATUS=status)


def dtun_yaml_5() -> str:
    return _framed("dtun.yaml.5", EXAMPLE=f".nf\n.EX\n{roff(EXAMPLE.read_text().rstrip())}\n.EE\n.fi\n")


def roff(text: str) -> str:
    """Text with all special characters of troff(1) escaped."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("^", "\\(ha")
    escaped = escaped.replace("~", "\\(ti").replace("`", "\\(ga").replace('"', "\\(dq")
    return re.sub(r"^\.", r"\\&.", escaped, flags=re.MULTILINE)


def _framed(name: str, **parts: str) -> str:
    text = (FRAMES / name).read_text().replace("@VERSION@", dtun.__version__)
    for part, content in parts.items():
        text = text.replace(f"@{part}@\n", content)
    return text


def _command(command: Command) -> str:
    shown = [option for option in command.options if option.flags != ("-h", "--help")]
    usage = " ".join(_usage(option) if option.required else f"[{_usage(option)}]" for option in shown)
    head = f".SS dtun {command.name}\n.B dtun {command.name}\n{usage}\n.PP\n"
    listed = "".join(map(_described, command.options))
    return head + roff(command.description.replace("\n", " ")) + "\n" + listed


def _usage(option: Option) -> str:
    flag = f"\\fB{roff(option.flags[0])}\\fR" if option.flags else ""
    value = f"\\fI{roff(option.value)}\\fR" if option.value else ""
    return " ".join(filter(None, (flag, value)))


def _described(option: Option) -> str:
    flags = ", ".join(f"\\fB{roff(flag)}\\fR" for flag in option.flags)
    value = f"\\fI{roff(option.value)}\\fR" if option.value else ""
    return f".TP\n{' '.join(filter(None, (flags, value)))}\n{roff(option.help)}\n"
