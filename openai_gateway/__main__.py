"""`python -m openai_gateway` is `openai-gateway`."""

from openai_gateway.cli import app

app(prog_name="openai-gateway")
