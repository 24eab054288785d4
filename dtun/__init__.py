"""An encrypted IP tunnel over UDP: DTLS 1.2 with pre-shared keys, one YAML file, left alone for years."""

__version__ = "0.2.0"
