"""Routes, addresses, links and rules through rtnetlink(7)."""
