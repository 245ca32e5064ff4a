"""The tiny models that tests of the engine share; none of them changes one."""

from __future__ import annotations

import pytest

from openai_gateway.types import ModelSpec
from openai_gateway.worker.load import Loaded, load
from tests.worker import tiny
from tests.worker.session import DEMO, SHAPES, STATES


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    folder = tmp_path_factory.mktemp("models")
    loaded = {
        name: load(ModelSpec(id=name, path=str(tiny.save(folder / name, config))))
        for name, config in (SHAPES | STATES).items()
    }
    return loaded | {"demo": load(ModelSpec(id="demo", path=str(DEMO)))}


@pytest.fixture
def llama(shapes: dict[str, Loaded]) -> Loaded:
    return shapes["llama"]
