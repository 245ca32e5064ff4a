"""An OpenAI-compatible gateway that serves models on the machine it runs on, through Apple's MLX."""

__version__ = "0.1.0"
