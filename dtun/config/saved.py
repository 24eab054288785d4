"""A configuration that has been in use, for a next process: the file as it was, with its keys and lists of networks.

So it can be used again whatever has become of these files meanwhile.
"""

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

from pydantic import Base64Bytes, BaseModel, ConfigDict, ValidationError

from dtun.config import document, validation
from dtun.config.keyed import Keyed
from dtun.config.loader import Config


class _Saved(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)

    content: Base64Bytes
    keys: list[list[Base64Bytes]]
    bypassed: list[str] | None


def save(config: Config) -> bytes:
    """The configuration, with secrets. Only for one that was read from a file, with its keys."""
    keys = [[key.secret() for key in keyed.known_keys] for keyed in _keyed(config)]
    bypassed = None if config.client is None else [str(network) for network in config.client.bypassed]
    saved = _Saved.model_construct(content=config.content, keys=keys, bypassed=bypassed)
    return saved.model_dump_json().encode()


def restore(data: bytes, path: Path) -> Config:
    """What was saved. `path` is where the file was.

    Raises:
        ValueError: it is of a version of dtun that had other settings.
    """
    try:
        saved = _Saved.model_validate_json(data)
    except ValidationError:
        raise ValueError("it is of another version of dtun") from None
    outcome = validation.validate(document.parse(saved.content).data)
    config = Config(*outcome.sections, path=path, content=saved.content)
    if outcome.problems:
        raise ValueError("this version of dtun does not accept it")
    keyed = list(_keyed(config))
    if len(keyed) != len(saved.keys):
        raise ValueError("its keys are missing")
    for one, secrets in zip(keyed, saved.keys, strict=True):
        one.use_keys(secrets)
    if config.client is not None and saved.bypassed is not None:
        config.client.use_bypassed(tuple(map(ip_network, saved.bypassed)))
    return config


def _keyed(config: Config) -> Iterator[Keyed]:
    if config.server is not None:
        yield from config.server.clients.values()
    if config.client is not None:
        yield config.client
