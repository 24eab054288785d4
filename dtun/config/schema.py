"""The JSON Schema of dtun.yaml, for editors."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from dtun.config.client import DEFAULT_MARK, ClientConfig
from dtun.config.common import RUNTIME_DIRECTORY, STATE_DIRECTORY
from dtun.config.server import ServerConfig

_DEFAULTS: Final[Mapping[str, object]] = {
    "listen": [str(endpoint) for endpoint in ServerConfig.model_fields["listen"].default],
    "suites": ["ECDHE-PSK-CHACHA20-POLY1305"],
    "mark": hex(DEFAULT_MARK),
    "state_directory": STATE_DIRECTORY,
    "runtime_directory": RUNTIME_DIRECTORY,
}
"""Defaults as a person writes them. Directories do not depend on this process's environment here."""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the file. The rules between settings are not in it."""
    references, definitions = models_json_schema([(ServerConfig, "validation"), (ClientConfig, "validation")])
    for model in definitions["$defs"].values():
        for name in model["properties"].keys() & _DEFAULTS.keys():
            model["properties"][name]["default"] = _DEFAULTS[name]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dtun.yaml",
        "type": "object",
        "properties": {
            "server": references[ServerConfig, "validation"],
            "client": references[ClientConfig, "validation"],
        },
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
        **definitions,
    }
