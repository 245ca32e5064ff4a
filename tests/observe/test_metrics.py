"""Metrics as Prometheus reads them, from a registry whose provider says what the test wants."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from openai_gateway.errors import ModelNotFound, QueueFull
from openai_gateway.gateway import Gateway
from openai_gateway.observe.metrics import COUNTERS, GAUGES, Metrics
from openai_gateway.observe.performance import Performance
from openai_gateway.registry import Registry
from openai_gateway.settings import Settings
from openai_gateway.types import CompletionRequest, Delta, Event, ModelInfo, ModelSpec, Request, Started, Stats

pytestmark = pytest.mark.anyio

STATS = Stats(**{name: place + 1 for place, name in enumerate(Stats.__struct_fields__)})


class Scripted:
    """A provider that says what it is told to, and has seen some restarts."""

    info: ModelInfo | None = None
    stats: Stats | None = STATS
    restarts = 3

    def __init__(self, *_: object) -> None: ...

    async def start(self, _: object) -> ModelInfo:
        self.info = ModelInfo(
            context_length=1, vocab_size=1, architecture="x", reasoning="hint", chat_template=True,
            fill_in_the_middle=False, parameters=1, pid=1,
        )  # fmt: skip
        return self.info

    async def generate(self, request: Request, _: object) -> AsyncGenerator[Event]:
        yield Started(20)
        yield Started(20, 8)
        if isinstance(request, CompletionRequest) and request.prompt == "one too many":
            raise QueueFull("full")
        yield Delta(0, "a", tokens=1)
        yield Delta(0, "b", tokens=2, finish="stop")

    async def close(self) -> None: ...


class Scene:
    """A gateway over two models, and its metrics."""

    def __init__(self) -> None:
        specs = [ModelSpec(id="org/a", path="a", aliases=("short",)), ModelSpec(id="b", path="b")]
        registry = Registry(specs, Settings(), find=lambda _: Scripted)
        performance = Performance()
        self.gateway = Gateway(registry, performance.watch)
        self.metrics = Metrics(registry, performance)

    async def ask(self, model: str, prompt: str = "a secret prompt") -> None:
        """One request to its end."""
        async for _ in self.gateway.generate(CompletionRequest(model=model, prompt=prompt)):
            pass

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Every sample that is exposed."""
        for family in text_string_to_metric_families(self.metrics.text().decode()):
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value

    def value(self, name: str, **labels: str) -> float:
        """The one sample of this name with these labels among its own."""
        (found,) = [v for n, have, v in self.samples() if n == name and labels.items() <= have.items()]
        return found


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_requests_appear_under_the_names_of_the_conventions(scene: Scene) -> None:
    await scene.ask("short:latest")
    expected = {
        "gen_ai_operation_name": "text_completion",
        "gen_ai_provider_name": "mlx",
        "gen_ai_request_model": "org/a",
        "gen_ai_response_model": "org/a",
    }
    for name in ("request_duration", "time_to_first_token", "time_per_output_token"):
        assert scene.value(f"gen_ai_server_{name}_seconds_count", **expected) == 1
    assert scene.value("gen_ai_server_request_duration_seconds_count", error_type="") == 1
    assert scene.value("gen_ai_client_token_usage_sum", **expected, gen_ai_token_type="input") == 20
    assert scene.value("gen_ai_client_token_usage_sum", **expected, gen_ai_token_type="output") == 3
    assert scene.value("openai_gateway_cached_input_tokens_total", gen_ai_request_model="org/a") == 8
    assert scene.value("gen_ai_client_token_usage_bucket", le="6.7108864e+07", gen_ai_token_type="input") == 1
    assert scene.value("gen_ai_server_request_duration_seconds_bucket", le="81.92") == 1


async def test_an_error_is_counted_under_its_class_and_has_no_tokens(scene: Scene) -> None:
    with pytest.raises(QueueFull):
        await scene.ask("b", "one too many")
    assert scene.value("gen_ai_server_request_duration_seconds_count", error_type="QueueFull") == 1
    assert "gen_ai_client_token_usage_count" not in {name for name, _, _ in scene.samples()}


async def test_a_request_whose_iterator_is_closed_is_cancelled_and_not_running_any_more(scene: Scene) -> None:
    events = scene.gateway.generate(CompletionRequest(model="b", prompt="x"))
    await anext(events)
    assert scene.value("openai_gateway_running_requests", gen_ai_request_model="b") == 1
    await events.aclose()
    assert scene.value("openai_gateway_running_requests", gen_ai_request_model="b") == 0
    assert scene.value("gen_ai_server_request_duration_seconds_count", error_type="cancelled") == 1


async def test_g37_ten_thousand_invented_names_add_nothing(scene: Scene) -> None:
    await scene.ask("org/a")
    before = [(name, labels) for name, labels, _ in scene.samples()]
    for number in range(10_000):
        with pytest.raises(ModelNotFound):
            await scene.ask(f"no-such-model-{number}")
    assert [(name, labels) for name, labels, _ in scene.samples()] == before


async def test_no_text_of_a_request_is_exposed(scene: Scene) -> None:
    await scene.ask("short")
    text = scene.metrics.text().decode()
    assert "secret" not in text
    assert "short" not in text


async def test_workers_of_loaded_models_are_read_when_asked(scene: Scene) -> None:
    assert scene.value("openai_gateway_model_loaded", gen_ai_request_model="b") == 0
    assert not [name for name, _, _ in scene.samples() if name.startswith("openai_gateway_worker_batch")]
    await scene.ask("b")
    assert scene.value("openai_gateway_model_loaded", gen_ai_request_model="b") == 1
    assert scene.value("openai_gateway_model_loaded", gen_ai_request_model="org/a") == 0
    assert scene.value("openai_gateway_worker_restarts_total", gen_ai_request_model="b") == 3
    for suffix, fields in (("", GAUGES), ("_total", COUNTERS)):
        for field, (name, _) in fields.items():
            exposed = scene.value(f"openai_gateway_worker_{name}{suffix}", gen_ai_request_model="b")
            assert exposed == getattr(STATS, field), name


async def test_everything_that_a_worker_reports_is_exposed() -> None:
    assert {*GAUGES, *COUNTERS} == set(Stats.__struct_fields__)


async def test_two_gateways_in_one_process_share_nothing(scene: Scene) -> None:
    other = Scene()
    await scene.ask("b")
    assert "QueueFull" not in other.metrics.text().decode()
    assert [value for name, _, value in other.samples() if name.endswith("duration_seconds_count")] == []
