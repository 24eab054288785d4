"""Identities, sessions and addresses: what the server and the client share, and the two themselves."""
