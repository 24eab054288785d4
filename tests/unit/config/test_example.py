"""Both halves of etc/dtun.yaml.example are correct, and complete."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dtun.config import ClientConfig, ClientEntry, Config, ServerConfig, document, keys, load

EXAMPLE = Path(__file__).parents[3] / "etc" / "dtun.yaml.example"
START_OF_CLIENT = "#client:"


# Each of these excludes another one, so the alternatives stay commented out.
ALTERNATIVES = ("credential", "key", "compat")


def halves() -> tuple[str, str]:
    """The part of the server, and that of the client without its first "#"."""
    lines = EXAMPLE.read_text().splitlines()
    start = lines.index(START_OF_CLIENT)
    return "\n".join(lines[:start]), "\n".join(line.removeprefix("#") for line in lines[start:])


def switched_on(half: str, *but: str) -> str:
    """The text with its commented-out settings, and only these."""
    others = "".join(f"(?!{name}:)" for name in but)
    return re.sub(rf'^( *)#(?=[a-z"]){others}', r"\1", half, flags=re.MULTILINE)


def load_half(text: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Load it, with the key files that it names."""
    for name in ("office", "office-next"):
        (directory / name).write_text(keys.generate())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    for name in ("home", "home-next", "shared"):
        key = directory / f"{name}.key"
        key.write_text(keys.generate())
        key.chmod(0o600)
        text = text.replace(f"/etc/dtun/{name}.key", str(key))
    (directory / "bypass.txt").write_text("192.0.2.0/24  # for documentation\n")
    text = text.replace("/etc/dtun/bypass.txt", "bypass.txt")
    path = directory / "dtun.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return load(path)


def test_the_file_serves_one_client_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_half(EXAMPLE.read_text(), tmp_path, monkeypatch)
    assert config.server is not None
    assert list(config.server.clients) == ["home"]
    assert config.warnings == []


def test_the_client_half_fits_the_server_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = (load_half(half, tmp_path, monkeypatch) for half in halves())
    assert client.client is not None
    assert server.server is not None
    entry = server.server.clients[client.client.id]
    assert client.client.subnets == entry.subnets
    assert client.warnings == []


def test_what_is_off_is_valid_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = halves()
    config = load_half(switched_on(server), tmp_path, monkeypatch)
    assert config.server is not None
    assert list(config.server.clients) == ["home", "office", "old-router", "*"]
    assert [warning for warning in config.warnings if "not executable" not in warning] == []
    config = load_half(switched_on(client, *ALTERNATIVES), tmp_path, monkeypatch)
    assert config.client is not None
    assert (config.client.mtu, len(config.client.routes)) == (1400, 2)
    assert len(config.client.bypassed) == 4
    for name in ("table", "mark"):
        assert getattr(config.client, name) == ClientConfig.model_fields[name].default


def test_every_setting_is_in_it() -> None:
    server_text, client_text = map(switched_on, halves())
    server = document.parse(server_text.encode()).data["server"]
    client = document.parse(client_text.encode()).data["client"]
    assert settings(server) == set(ServerConfig.model_fields)
    assert set().union(*map(settings, server["clients"].values())) == set(ClientEntry.model_fields)
    assert settings(client) == set(ClientConfig.model_fields)


def settings(section: dict[str, Any]) -> set[str]:
    return set(section)


@pytest.mark.parametrize(("half", "model"), [(0, ServerConfig), (1, ClientConfig)])
def test_a_setting_that_is_said_to_be_a_default_is_one(
    half: int, model: type[BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    text = halves()[half]
    section = load_half(text, tmp_path, monkeypatch).section
    said = re.findall(r"^  (\w+): .* # default$", text, flags=re.MULTILINE)
    assert len(said) >= 5
    for name in said:
        default = model.model_fields[name].get_default(call_default_factory=True, validated_data={})
        assert getattr(section, name) == (30 if name == "hook_timeout" else default), name


def test_every_setting_says_whether_it_is_a_default() -> None:
    for half in halves():
        outer = re.findall(r"^  #?\w+: .*$", half, flags=re.MULTILINE)
        assert [line for line in outer if not re.search(r" # (default|example)", line)] == []
