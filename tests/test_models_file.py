"""models.yaml: what it lists, and what may be wrong in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openai_gateway.models_file import EMBEDDED, read_models
from openai_gateway.settings import Settings, SettingsError
from openai_gateway.types import Limits, ModelSpec


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a model's folder in it."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(folder: Path, models: str, **settings: Any) -> list[ModelSpec]:
    """What a models.yaml with these lines gives."""
    (folder / "models.yaml").write_text(models)
    return read_models(Settings(**settings))


def test_without_a_list_there_is_the_embedded_model(folder: Path) -> None:
    assert read_models(Settings()) == [EMBEDDED]
    assert listed(folder, "gateway: {port: 1}") == [EMBEDDED]
    assert Path(EMBEDDED.path, "config.json").exists()


def test_folders_are_found_beside_models_yaml_and_other_paths_are_hub_ids(folder: Path) -> None:
    a, b = listed(folder, "models: [{id: a, path: mine}, {id: b, path: org/name, revision: v1, defaults: {top_k: 3}}]")
    assert a.path == str(folder / "mine")
    assert (b.path, b.revision, b.defaults.top_k) == ("org/name", "v1", 3)


def test_the_model_setting_comes_first_whatever_it_names(folder: Path) -> None:
    lines = "models: [{id: a, path: mine}, {id: b, path: mine, aliases: [bee]}]"
    assert [s.id for s in listed(folder, lines, model="bee")] == ["b", "a"]
    assert [s.id for s in listed(folder, lines, model="./mine")] == ["mine", "a", "b"]
    hub = listed(folder, lines, model="mlx-community/gpt-oss-20b-MXFP4-Q8")[0]
    assert hub.id == hub.path == "mlx-community/gpt-oss-20b-MXFP4-Q8"


def test_a_model_setting_that_looks_like_a_folder_and_is_none_is_an_error(folder: Path) -> None:
    for missing in ("./typo", "~/typo", "/nope/typo", "~nobody-of-this-name/typo"):
        with pytest.raises(SettingsError, match=f"^model: there is no folder {missing}$"):
            read_models(Settings(model=missing))


def test_a_folder_called_like_an_entry_is_an_error_and_like_an_alias_takes_the_name(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"^model: mine is what another model is called"):
        listed(folder, "models: [{id: mine, path: org/mine}]", model="./mine")
    first, other = listed(folder, "models: [{id: a, path: org/a, aliases: [mine, b]}]", model="./mine")
    assert (first.id, first.path) == ("mine", str(folder / "mine"))
    assert (other.id, other.aliases) == ("a", ("b",))


def test_what_entries_share_may_stand_at_the_top_under_an_anchor(folder: Path) -> None:
    lines = (
        "shared: &shared {idle_timeout: 60, cache_type: quantized}\n"
        "models:\n  - {<<: *shared, id: a, path: mine}\n  - {<<: *shared, id: b, path: mine, idle_timeout: 9}"
    )
    assert [(spec.idle_timeout, spec.cache_type) for spec in listed(folder, lines)] == [
        (60, "quantized"),
        (9, "quantized"),
    ]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("models: [\n{id: a}]", r"line 2: this model has no `path`$"),
        (
            "models:\n- id: a\n  path: mine\n  tempperature: 1",
            "line 4: there is no field `tempperature`; did you mean `defaults.temperature`",
        ),
        (
            "models:\n- id: a\n  path: mine\n  defaults:\n    temprature: 1",
            r"line 5: there is no field `temprature`; did you mean `temperature`\?$",
        ),
        ("models: [{id: a, path: mine, defaults: {temperature: 9}}]", "defaults.temperature: Expected `number` <= 2"),
        ("models: [{id: a, path: mine, context_length: many}]", r"context_length: Expected `whole number \| none`"),
        ("models: [{id: a, path: mine, 7: many}]", "there is no field `7`"),
        ("models: [{id: a, path: 7}]", "path: Expected `text`, got `whole number`"),
        ("models: [a]", "line 1: an entry is a mapping with `id` and `path`"),
        ("models: [{id: a, path: mine}, {id: b, path: mine, aliases: [a]}]", "a names more than one model"),
        ("models: [{id: a, path: ./elsewhere}]", "there is no folder ./elsewhere"),
        ("models: [{id: a, path: some/where/else}]", "line 1: path: there is no folder some/where/else"),
        ("\nmodels: {a: mine}", r"models\.yaml, line 2: `models` is a list of entries with `id` and `path`"),
        ("models: [{id: a, path: mine, path: ./b}]", r"models\.yaml, line 1: `path` stands here twice"),
        ("models: []\nModels: []", r"models\.yaml, line 2: there is no section `Models`; did you mean `models`\?"),
        ("models: [{id: a, path: mine, adapter: ./none}]", "there is no folder ./none"),
    ],
)
def test_what_is_wrong_in_models_yaml_is_said(folder: Path, lines: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        listed(folder, lines)


@pytest.mark.parametrize(("written", "bytes"), [("12GB", 12 * 10**9), ("4096", 4096), ("auto", "auto")])
def test_the_memory_of_an_entry_is_a_size(tmp_path: Path, written: str, bytes: object) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(f"models: [{{id: a, path: org/a, memory: {written}}}]")
    (entry,) = read_models(Settings(models_file=file))
    assert entry.memory == bytes


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("memory: much", "line 1: memory: a size is `auto` or a number of bytes"),
        ("kv_bits: 4", "line 1: kv_bits and kv_group_size need `cache_type: quantized`"),
        ("kv_group_size: 32", "line 1: kv_bits and kv_group_size need `cache_type: quantized`"),
        ("cache_type: quantized, kv_bits: 3", "line 1: kv_bits: Invalid enum value 3; there are 4, 8"),
        ("quantization: q2", "line 1: quantization: Invalid enum value 'q2'; there are auto, none, q8, q4"),
    ],
)
def test_what_cannot_be_done_with_memory_is_an_error(tmp_path: Path, fields: str, problem: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(f"models: [{{id: a, path: org/a, {fields}}}]")
    with pytest.raises(SettingsError) as caught:
        read_models(Settings(models_file=file))
    assert problem in str(caught.value)


def test_a_name_that_two_models_have_is_said_with_the_file_that_they_stand_in(folder: Path) -> None:
    (folder / "mine.yaml").write_text("models: [{id: a, path: mine}, {id: a, path: mine}]")
    with pytest.raises(SettingsError, match=r"^mine\.yaml: a names more than one model$"):
        read_models(Settings(models_file="mine.yaml"))


@pytest.mark.parametrize(
    "written",
    [
        "'concurrency=4, requests_per_day=none'",
        "{concurrency: 4, requests_per_day: none}",
        "{concurrency: '4'}",
        "{concurrency: 4}",
    ],
)
def test_the_limits_of_an_entry_are_written_as_those_of_the_gateway(folder: Path, written: str) -> None:
    (entry,) = listed(folder, f"models: [{{id: a, path: mine, limits: {written}}}]")
    assert entry.limits == Limits(concurrency=4)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("burst=3", "`burst` needs `requests_per_minute`"),
        ("{fly: 3}", "there is no limit `fly`"),
        ("{concurrency: x}", "`concurrency` is a whole number or `none`"),
        ("[]", "limits are written as a mapping, or as name=number"),
        ("", "Expected `mapping`, got `none`"),
    ],
)
def test_limits_of_an_entry_that_are_none_are_said_with_their_line(folder: Path, written: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=f"^models.yaml, line 4: limits: {problem}"):
        listed(folder, f"models:\n- id: a\n  path: mine\n  limits: {written}\n")


def test_what_is_no_yaml_is_said_with_its_line_and_without_what_stands_there(folder: Path) -> None:
    (folder / "models.yaml").touch()
    settings = Settings()
    (folder / "models.yaml").write_text("gateway:\n  api_key: sk-hunter2: [\n")
    with pytest.raises(SettingsError) as caught:
        read_models(settings)
    assert str(caught.value) == "models.yaml, line 2: mapping values are not allowed here"


@pytest.mark.parametrize("content", [b"models: [{id: a", b"\xff\xfe", b"- 1", b"models: 3", b"models: \x00"])
def test_g36_a_file_that_was_broken_since_the_start_is_an_error_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("models.yaml")
    file.write_text("models: [{id: a, path: org/a}]")
    settings = Settings()
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^models\.yaml(, line \d+)?: "):
        read_models(settings)
    file.unlink()
    with pytest.raises(SettingsError, match="No such file"):
        read_models(settings)
