"""Writes docs/configuration.md from the models of dtun/config. Run by `make reference`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtun.config.schema import schema

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """\
# Configuration

All settings of dtun.yaml. This page is made from the models that check the file; `make reference` writes it anew.
[etc/dtun.yaml.example](../etc/dtun.yaml.example) shows the same in a file to start from, and `dtun check` says what is
wrong with yours, with line and column.

A file has one section, `server` or `client`. Where a list is expected, a single value may stand without brackets.
Relative paths start at the directory of the file.

## In an editor

`dtun schema` prints the JSON Schema of the file, with these descriptions. Editors with a YAML language server complete
and check with it:

    dtun schema > ~/.config/dtun.schema.json

and, as the first line of the file:

    # yaml-language-server: $schema=file:///home/me/.config/dtun.schema.json

What several settings have to do with each other is not in a schema; `dtun check` knows it.
"""
# Title, model, text, and the settings in the order in which a person wants to read them.
SECTIONS = (
    (
        "server",
        "ServerConfig",
        "What a server is told.",
        (
            "listen clients pool pool6 mtu suites keepalive timeout forwarding masquerade push_routes push_dns "
            "push_domains up down hook_timeout state_directory runtime_directory"
        ),
    ),
    (
        "server.clients.ID",
        "ClientEntry",
        "What is true for one client, or, as `*`, for any id without an entry.",
        (
            "key_file credential key next_key_file next_credential subnets address address6 tun push_routes push_dns "
            "push_domains up down hook_timeout compat"
        ),
    ),
    (
        "client",
        "ClientConfig",
        "What a client is told.",
        (
            "servers id key_file credential key subnets routes exclude bypass bypass_files on_disconnect ipv6 routing "
            "host_routes_first answer_directly table mark accept_routes accept_dns dns dns_domains forwarding tun mtu "
            "suites rekey up down hook_timeout runtime_directory compat"
        ),
    ),
)
_KINDS = {
    "string": "text",
    "integer": "number",
    "number": "number",
    "boolean": "true or false",
    "array": "list",
    "object": "mapping",
}


def page() -> str:
    """The whole page."""
    definitions = schema()["$defs"]
    parts = [HEAD]
    for title, model, text, settings in SECTIONS:
        definition = definitions[model]
        properties, required = definition["properties"], definition.get("required", [])
        parts.append(f"## {title}\n\n{text}\n\n| setting | kind | default | |\n| --- | --- | --- | --- |")
        parts += [_row(name, properties[name], is_required=name in required) for name in settings.split()]
        parts.append("")
    return "\n".join(parts)


def _row(name: str, setting: Mapping[str, Any], *, is_required: bool) -> str:
    default = "**required**" if is_required else _default(setting.get("default"))
    return f"| `{name}` | {_kind(setting)} | {default} | {setting['description']} |"


def _kind(setting: Mapping[str, Any]) -> str:
    if "anyOf" in setting:
        kinds = [_kind(one) for one in setting["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if words := setting.get("enum", [setting["const"]] if "const" in setting else []):
        return " or ".join(f"`{word}`" for word in words)
    kind = _KINDS.get(setting.get("type", ""), "text or list")
    least = setting.get("minimum", setting.get("exclusiveMinimum"))
    most = setting.get("maximum")
    return kind if least is None or most is None else f"{kind}, {least:g} to {most:g}"


def _default(value: Any) -> str:
    if value in (None, [], ()):
        return ""
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value)
    if isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    return f"`{value}`" if isinstance(value, str) else f"`{value:g}`"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
