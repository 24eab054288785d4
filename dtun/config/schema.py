"""What a dtun.yaml may hold, for editors and other programs."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from dtun.config.client import ClientConfig
from dtun.config.common import RUNTIME_DIRECTORY, STATE_DIRECTORY
from dtun.config.descriptions import OF_MODELS
from dtun.config.routed import DEFAULT_MARK
from dtun.config.server import ServerConfig

_DEFAULTS: Final[Mapping[str, object]] = {
    "listen": [str(endpoint) for endpoint in ServerConfig.model_fields["listen"].default],
    "suites": ["ECDHE-PSK-CHACHA20-POLY1305"],
    "mark": hex(DEFAULT_MARK),
    "state_directory": STATE_DIRECTORY,
    "runtime_directory": RUNTIME_DIRECTORY,
}
"""As a person writes them; and the directories without what a service manager may have told this process."""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the file. The rules between settings are not in it."""
    references, definitions = models_json_schema([(ServerConfig, "validation"), (ClientConfig, "validation")])
    for model, descriptions in OF_MODELS.items():
        properties = definitions["$defs"][model]["properties"]
        for name, text in descriptions.items():
            properties[name]["description"] = text
        for name in properties.keys() & _DEFAULTS.keys():
            properties[name]["default"] = _DEFAULTS[name]
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
