"""Makes the embedded model again from composed text, and measures it against a running server."""
