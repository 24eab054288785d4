"""The client: one tunnel, kept up."""
