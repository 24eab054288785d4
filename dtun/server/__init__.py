"""The server: identities, logins, and what a client may have."""
