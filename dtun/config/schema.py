"""What a dtun.yaml may hold, for editors and other programs."""

from typing import Any

from pydantic.json_schema import models_json_schema

from dtun.config.client import ClientConfig
from dtun.config.server import ServerConfig


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the file. The rules between settings are not in it."""
    references, definitions = models_json_schema([(ServerConfig, "validation"), (ClientConfig, "validation")])
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
