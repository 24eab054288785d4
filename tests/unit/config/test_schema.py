"""The JSON Schema knows what a file may hold."""

import json
from typing import Any

from dtun.config import ClientConfig, ServerConfig
from dtun.config.schema import schema


def kinds(model: str, setting: str) -> set[str]:
    """The types that a setting may be written as."""
    there: dict[str, Any] = schema()["$defs"][model]["properties"][setting]
    return {kind["type"] for kind in there.get("anyOf", [there])}


def test_a_file_is_one_section() -> None:
    there = schema()
    assert json.loads(json.dumps(there)) == there
    assert set(there["properties"]) == {"server", "client"}
    assert (there["minProperties"], there["maxProperties"]) == (1, 1)
    for section in there["properties"].values():
        assert section["$ref"].removeprefix("#/$defs/") in there["$defs"]


def test_every_setting_is_in_it() -> None:
    definitions = schema()["$defs"]
    for model in (ServerConfig, ClientConfig):
        assert set(definitions[model.__name__]["properties"]) == set(model.model_fields)
        assert definitions[model.__name__]["additionalProperties"] is False


def test_settings_are_what_people_write() -> None:
    assert kinds("ClientConfig", "routes") == {"string", "array"}
    assert kinds("ClientConfig", "accept_routes") == {"string", "array"}
    assert kinds("ClientConfig", "mark") == {"integer", "string"}
    assert kinds("ClientConfig", "accept_dns") == {"boolean"}
    assert kinds("ServerConfig", "masquerade") == {"boolean", "string", "array"}
    assert kinds("ServerConfig", "clients") == {"object"}
