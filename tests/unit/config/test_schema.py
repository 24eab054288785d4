"""The JSON Schema and the reference page have every setting."""

import json
from typing import Any

import pytest

from dtun.config import ClientConfig, ServerConfig
from dtun.config.schema import schema
from tools import reference

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


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


def test_every_setting_is_described_and_on_the_reference_page() -> None:
    definitions = schema()["$defs"]
    assert {model for _, model, _, _ in reference.SECTIONS} == set(definitions)
    for _, model, _, settings in reference.SECTIONS:
        properties = definitions[model]["properties"]
        assert sorted(settings.split()) == sorted(properties), model
        for setting in properties.values():
            assert setting["description"].endswith((".", ":"))


def test_what_it_gives_as_defaults_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(variable, raising=False)
    needed: dict[Any, dict[str, Any]] = {
        ServerConfig: {"clients": {"a": {"key": KEY}}},
        ClientConfig: {"servers": ["h"], "id": "a", "key": KEY},
    }
    for model, settings in needed.items():
        properties = schema()["$defs"][model.__name__]["properties"]
        defaults = {
            name: one["default"] for name, one in properties.items() if one.get("default") is not None
        }
        assert len(defaults) > 5
        assert model(**settings, **defaults) == model(**settings)


def test_the_reference_page_is_as_the_models_are() -> None:
    assert reference.PAGE.read_text() == reference.page(), "out of date; run: make reference"
