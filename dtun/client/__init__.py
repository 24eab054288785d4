"""The client: one tunnel, kept up until it is stopped."""
