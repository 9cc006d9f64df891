"""Planning: search from a position whose rules are known."""
