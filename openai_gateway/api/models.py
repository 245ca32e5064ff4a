"""GET /v1/models, /v1/models/{id} and /v1/capabilities: what there is, and what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from openai_gateway import __version__
from openai_gateway.access.permissions import check_model, may_use
from openai_gateway.registry import Registry
from openai_gateway.settings import Settings
from openai_gateway.types import EFFORTS, ModelInfo, ModelSpec


class Models:
    """The endpoints. Ids may hold slashes, percent-encoded or not."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._settings = settings

    async def list(self, http: Request) -> Response:
        """Every name that this key may use: the models, the default one first, then their aliases."""
        specs = self._visible(http)
        models = [self._model(spec) for spec in specs]
        models += [self._model(spec, alias) for spec in specs for alias in spec.aliases]
        return JSONResponse({"object": "list", "data": models})

    async def retrieve(self, http: Request) -> Response:
        """One model, by id or alias."""
        name = http.path_params["model"]
        check_model(http.state.models, name)
        return JSONResponse(self._model(self._registry.resolve(name), name))

    async def capabilities(self, http: Request) -> Response:
        """What this server honours, and what each model can do; what only a loaded model tells is null until then."""
        return JSONResponse(
            {
                "object": "capabilities",
                "version": __version__,
                "endpoints": [
                    "/v1/chat/completions",
                    "/v1/completions",
                    "/v1/models",
                    "/v1/capabilities",
                    "/v1/performance",
                ],
                "features": {
                    "streaming": True,
                    "logprobs": True,
                    "seed": True,
                    "n": self._settings.max_n,
                    "reasoning_effort": list(EFFORTS),
                    "thinking_budget": True,
                    "tools": ["function", "custom"],
                    "tool_choice": ["none", "auto", "required", "function", "custom", "allowed_tools"],
                    "parallel_tool_calls": True,
                    "response_format": ["text", "json_object", "json_schema"],
                    "structured_outputs": ["json", "regex", "choice", "grammar", "json_object"],
                },
                "models": [self._abilities(spec) for spec in self._visible(http)],
            }
        )

    def _visible(self, http: Request) -> Sequence[ModelSpec]:
        return [spec for spec in self._registry.specs if may_use(http.state.models, spec.id)]

    def _model(self, spec: ModelSpec, name: str | None = None) -> dict[str, Any]:
        info = self._registry.info(spec.id)
        context = info.context_length if info else spec.context_length
        return {
            "id": name or spec.id,
            "object": "model",
            "created": self._registry.created(spec),
            "owned_by": "openai_gateway",
            "aliases": list(spec.aliases),
            "loaded": info is not None,
            "context_length": context,
            "max_model_len": context,  # vLLM's name, the only one that some clients know
        }

    def _abilities(self, spec: ModelSpec) -> dict[str, Any]:
        info = self._registry.info(spec.id)
        return {
            "id": spec.id,
            "aliases": list(spec.aliases),
            "loaded": info is not None,
            "provider": spec.provider,
            "default_reasoning_effort": spec.defaults.reasoning_effort,
            **_facts(info),
        }


def _facts(info: ModelInfo | None) -> dict[str, Any]:
    names = ("architecture", "context_length", "vocab_size", "parameters", "reasoning", "chat_template")
    return {name: getattr(info, name, None) for name in (*names, "fill_in_the_middle")}
