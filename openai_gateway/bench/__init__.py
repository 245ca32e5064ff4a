"""A load generator for any OpenAI-compatible server: it knows HTTP and the wire format, and imports no server."""
