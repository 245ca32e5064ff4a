"""`openai-gateway serve`: run the gateway until it is told to stop."""

from __future__ import annotations

from openai_gateway.cli.client import (
    HostOption,
    LogFormatOption,
    LogLevelOption,
    ModelOption,
    ModelsFileOption,
    PortOption,
    complain,
    fail,
    read_settings,
    refuse,
)


def serve(
    host: HostOption = None,
    port: PortOption = None,
    model: ModelOption = None,
    models_file: ModelsFileOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Serve the models.

    Every other setting comes from the environment, .env or models.yaml; see `openai-gateway config`.
    """
    settings = read_settings(
        host=host, port=port, model=model, models_file=models_file, log_level=log_level, log_format=log_format
    )
    if not settings.loopback and settings.api_key is None:
        complain(f"Anyone who can reach {settings.host} may use this gateway: OPENAI_GATEWAY_API_KEY is not set.")
    from openai_gateway.app import serve as run
    from openai_gateway.settings import SettingsError

    try:
        run(settings)
    except SettingsError as error:
        refuse(error)
    except OSError as error:
        fail(f"Cannot serve on {settings.host}, port {settings.port}: {error.strerror or error}")
