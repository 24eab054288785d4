"""Validated, frozen models of the YAML file and of the quick start's command line."""

from dtun.config.client import ClientConfig
from dtun.config.common import Hook
from dtun.config.errors import ConfigErrors, Problem
from dtun.config.keys import Key
from dtun.config.loader import Config, load
from dtun.config.server import ANY_ID, ClientEntry, Pushed, ServerConfig
from dtun.config.values import DEFAULT_PORT, Endpoint, ServerName

__all__ = [
    "ANY_ID",
    "DEFAULT_PORT",
    "ClientConfig",
    "ClientEntry",
    "Config",
    "ConfigErrors",
    "Endpoint",
    "Hook",
    "Key",
    "Problem",
    "Pushed",
    "ServerConfig",
    "ServerName",
    "load",
]
