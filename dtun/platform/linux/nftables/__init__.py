"""dtun's own nftables table."""
