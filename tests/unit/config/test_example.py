"""etc/dtun.yaml.example is correct, both halves of it, and leaves nothing out."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dtun.config import ClientConfig, ClientEntry, Config, ServerConfig, document, keys, load

EXAMPLE = Path(__file__).parents[3] / "etc" / "dtun.yaml.example"
START_OF_CLIENT = "#client:"


def halves() -> tuple[str, str]:
    """The server's part, and the client's part without its first "#"."""
    lines = EXAMPLE.read_text().splitlines()
    start = lines.index(START_OF_CLIENT)
    return "\n".join(lines[:start]), "\n".join(line.removeprefix("#") for line in lines[start:])


def load_half(text: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Load it, with keys in the places that it names."""
    (directory / "office").write_text(keys.generate())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    for name in ("home", "shared"):
        key = directory / f"{name}.key"
        key.write_text(keys.generate())
        key.chmod(0o600)
        text = text.replace(f"/etc/dtun/{name}.key", str(key))
    path = directory / "dtun.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return load(path)


def test_the_server_half_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_half(halves()[0], tmp_path, monkeypatch)
    assert config.server is not None
    assert list(config.server.clients) == ["home", "office", "old-router", "*"]
    assert [warning for warning in config.warnings if "not executable" not in warning] == []


def test_the_client_half_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_half(halves()[1], tmp_path, monkeypatch)
    assert config.client is not None
    assert config.client.id == "home"


def test_the_file_is_valid_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_half(EXAMPLE.read_text(), tmp_path, monkeypatch).server is not None


def test_every_setting_is_in_it() -> None:
    server_text, client_text = halves()
    server = document.parse(server_text.encode()).data["server"]
    client = document.parse(re.sub(r"#(?=[a-z])", "", client_text).encode()).data["client"]
    assert settings(server) == set(ServerConfig.model_fields)
    assert set().union(*map(settings, server["clients"].values())) == set(ClientEntry.model_fields)
    assert settings(client) == set(ClientConfig.model_fields)


def settings(section: dict[str, Any]) -> set[str]:
    return set(section)


@pytest.mark.parametrize(
    ("half", "model", "own"),
    [
        (0, ServerConfig, {"pool6", "mtu", "up", "down", "clients"}),
        (1, ClientConfig, {"servers", "id", "key_file", "subnets", "routes", "mtu", "up", "down"}),
    ],
)
def test_values_are_the_defaults_where_nothing_else_is_said(
    half: int,
    model: type[BaseModel],
    own: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    section = load_half(halves()[half], tmp_path, monkeypatch).section
    for name, field in model.model_fields.items():
        if name not in own:
            default = field.get_default(call_default_factory=True, validated_data={})
            assert getattr(section, name) == (30 if name == "hook_timeout" else default), name
