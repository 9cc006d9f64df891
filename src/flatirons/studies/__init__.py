"""Systems with worlds and protocols of their own, and the papers' numbers."""
