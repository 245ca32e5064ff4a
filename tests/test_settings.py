from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from openai_gateway.settings import Settings, SettingsError, sources


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.upper().startswith("OPENAI_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def yaml(text: str, name: str = "models.yaml") -> None:
    Path(name).write_text(text, encoding="utf-8")


def problems(**options: object) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        Settings(**options)
    return caught.value.problems


def source(settings: Settings, name: str) -> str:
    return next(setting.source for setting in sources(settings) if setting.name == name)


def test_without_anything_said_the_gateway_listens_on_this_machine_only() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.loopback, settings.models_file) == ("127.0.0.1", 8000, True, None)
    assert {setting.source for setting in sources(settings)} == {"default"}


def test_the_command_line_beats_the_environment_beats_dotenv_beats_models_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    yaml("gateway:\n  max_batch: 1\n  max_queue: 1\n  max_n: 1\n  port: 1\n")
    Path(".env").write_text("OPENAI_GATEWAY_MAX_QUEUE=2\nOPENAI_GATEWAY_MAX_N=2\nOPENAI_GATEWAY_PORT=2\n")
    monkeypatch.setenv("OPENAI_GATEWAY_MAX_N", "3")
    monkeypatch.setenv("OPENAI_GATEWAY_PORT", "3")
    settings = Settings(port=4)
    assert (settings.max_batch, settings.max_queue, settings.max_n, settings.port) == (1, 2, 3, 4)
    assert source(settings, "max_batch") == "models.yaml, line 2"
    assert source(settings, "max_queue") == ".env, OPENAI_GATEWAY_MAX_QUEUE"
    assert source(settings, "max_n") == "environment variable OPENAI_GATEWAY_MAX_N"
    assert source(settings, "port") == "command line"
    assert source(settings, "host") == "default"


def test_the_models_yaml_of_the_working_folder_is_found() -> None:
    yaml("models: []\n")
    assert Settings().models_file == Path("models.yaml")


def test_no_models_file_can_be_asked_for() -> None:
    yaml("gateway: {port: 1}\n")
    assert Settings(models_file=None).port == 8000


def test_dotenv_and_above_it_the_environment_name_another_models_file(monkeypatch: pytest.MonkeyPatch) -> None:
    yaml("gateway: {port: 1}\n")
    yaml("gateway: {port: 2}\n", "second.yaml")
    yaml("gateway: {port: 3}\n", "third.yaml")
    Path(".env").write_text("OPENAI_GATEWAY_MODELS_FILE=second.yaml\n")
    assert Settings().port == 2
    monkeypatch.setenv("OPENAI_GATEWAY_MODELS_FILE", "third.yaml")
    assert (Settings().models_file, Settings().port) == (Path("third.yaml"), 3)


def test_a_models_file_in_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    yaml("gateway: {port: 2}\n", "mine.yaml")
    settings = Settings(models_file="~/mine.yaml")
    assert (settings.port, settings.models_file) == (2, tmp_path / "mine.yaml")


def test_a_folder_in_a_home_that_nobody_has_is_an_error_that_says_where_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (problem,) = problems(log_dir="~nobody-of-that-name/log")
    assert problem.startswith("command line: log_dir: no home is known for `~nobody-of-that-name`")

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    (problem,) = problems()
    assert problem.startswith("default: prefix_folder: no home is known for `~`")
    assert Settings(prefix_folder="/tmp").prefix_folder == Path("/tmp")


def test_a_named_models_file_that_is_missing_is_an_error() -> None:
    assert problems(models_file="nowhere.yaml") == ("nowhere.yaml: cannot be read: No such file or directory",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("models:\n  - [\n", "models.yaml, line 3: expected the node content, but found '<stream end>'"),
        ("- 1\n", "models.yaml: the file and its `gateway:` section hold `name: value` lines"),
        ("gateway: fast\n", "models.yaml: the file and its `gateway:` section hold `name: value` lines"),
        ("gateway:\n  port: 1\n  port: 2\n", "models.yaml, line 3: `port` stands here twice"),
        ("gateway: {port: 1}\ngateway: {}\n", "models.yaml, line 2: `gateway` stands here twice"),
        ("models:\n  - id: a\n    path: b\n    path: c\n", "models.yaml, line 4: `path` stands here twice"),
        ("gatway: {port: 1}\n", "models.yaml, line 1: there is no section `gatway`; did you mean `gateway`?"),
        ("gateway:\nmodel: []\n", "models.yaml, line 2: there is no section `model`; did you mean `models`?"),
        ("port: 1\n", "models.yaml, line 1: there is no section `port`"),
        ("gateway:\n  on: 1\n", "models.yaml, line 1: there is no setting `True`"),
        ("gateway: {[1]: 2}\n", "models.yaml, line 1: found unhashable key"),
        ("key: *sk-secret\n", "models.yaml, line 1: found undefined alias"),
        ("key: !sk-secret\n", "models.yaml, line 1: could not determine a constructor for the tag"),
        ("port: !!int x\n", "models.yaml: invalid literal for int() with base 10: 'x'"),
        ("a: \0\n", "models.yaml: unacceptable character #x0000: special characters are not allowed"),
    ],
)
def test_a_broken_models_file_is_named_with_its_line(text: str, problem: str) -> None:
    yaml(text)
    assert problems() == (problem,)


@pytest.mark.parametrize("text", ["", "gateway:\n", "models: []\n", "gateway: {}\n"])
def test_a_models_file_may_leave_the_gateway_section_out(text: str) -> None:
    yaml(text)
    assert Settings().port == 8000


def test_a_yaml_anchor_may_be_merged_into_the_gateway_section() -> None:
    yaml("shared: &shared {port: 1, max_n: 2}\ngateway:\n  <<: *shared\n  port: 3\n")
    settings = Settings()
    assert (settings.port, settings.max_n) == (3, 2)
    assert [source(settings, name) for name in ("port", "max_n")] == ["models.yaml, line 4", "models.yaml, line 1"]


def test_an_unknown_name_in_the_gateway_section_is_an_error_that_suggests_the_nearest() -> None:
    yaml("gateway:\n  port: 1\n  prot: 2\n")
    assert problems() == ("models.yaml, line 3: there is no setting `prot`; did you mean `port`?",)


def test_the_models_file_cannot_name_itself() -> None:
    yaml("gateway: {models_file: other.yaml}\n")
    assert problems() == ("models.yaml, line 1: the file cannot name itself with `models_file`",)


def test_an_unknown_variable_is_an_error_that_suggests_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_GATEWAY_MAX_QUEU", "1")
    wanted = "environment variable OPENAI_GATEWAY_MAX_QUEU: there is no setting `max_queu`; did you mean `max_queue`?"
    assert problems() == (wanted,)


def test_an_unknown_variable_of_ours_in_dotenv_is_an_error_and_those_of_others_are_not() -> None:
    Path(".env").write_text("OPENAI_API_KEY=x\nOTHER=y\nOPENAI_GATEWAY_ZZZ=1\n")
    assert problems() == (".env, OPENAI_GATEWAY_ZZZ: there is no setting `zzz`",)


def test_an_unknown_option_is_an_error() -> None:
    assert problems(prot=1) == ("command line: there is no setting `prot`; did you mean `port`?",)


def test_every_problem_is_told_at_once_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    yaml("gateway:\n  max_n: many\n  zzz: 1\n")
    monkeypatch.setenv("OPENAI_GATEWAY_PORT", "70000")
    assert problems(load_timeout=0) == (
        "models.yaml, line 3: there is no setting `zzz`",
        "environment variable OPENAI_GATEWAY_PORT: port: Input should be less than or equal to 65535, not '70000'",
        "command line: load_timeout: Input should be greater than 0, not 0",
        "models.yaml, line 2: max_n: Input should be a valid integer, unable to parse string as an integer, not 'many'",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", ""),
        ("port", -1),
        ("port", 65536),
        ("model", ""),
        ("max_loaded_models", 0),
        ("idle_timeout", -1),
        ("load_timeout", float("inf")),
        ("heartbeat_timeout", float("nan")),
        ("max_batch", 0),
        ("max_body", 10),
        ("keep_alive", -1),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("wired_limit", "maybe"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(name: str, value: object) -> None:
    (problem,) = problems(**{name: value})
    assert problem.startswith(f"command line: {name}: ")


@pytest.mark.parametrize("value", ["https://a.example/", "a.example", "https://a.example/path"])
def test_an_origin_that_no_browser_sends_is_refused(value: str) -> None:
    (problem,) = problems(cors_origins=[value])
    assert problem == f"command line: cors_origins: an origin is scheme://host[:port], and no more, not {value!r}"


@pytest.mark.parametrize("value", ["a.example:8000", "http://a.example", "a/b", "a.*", "*.a"])
def test_an_allowed_host_that_could_never_match_is_refused(value: str) -> None:
    (problem,) = problems(allowed_hosts=[value])
    assert problem == f"command line: allowed_hosts: a host name has no scheme and no port, not {value!r}"


def test_lists_are_comma_separated_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_GATEWAY_CORS_ORIGINS", "https://a.example, app://obsidian.md,")
    monkeypatch.setenv("OPENAI_GATEWAY_ALLOWED_HOSTS", "a.example,b.example,[::1]")
    settings = Settings()
    assert settings.cors_origins == ("https://a.example", "app://obsidian.md")
    assert settings.allowed_hosts == ("a.example", "b.example", "[::1]")


def test_lists_are_lists_in_models_yaml_and_allowed_hosts_hold_on_a_loopback_address_too() -> None:
    yaml("gateway:\n  cors_origins: ['*']\n  allowed_hosts: [proxy.example]\n")
    assert (Settings().cors_origins, Settings().hosts) == (("*",), ("proxy.example",))


NAMES = ("localhost", "127.0.0.1", "[::1]", "host.docker.internal", "host.containers.internal")


@pytest.mark.parametrize(
    ("host", "hosts"),
    [
        ("127.0.0.1", NAMES),
        ("localhost", NAMES),
        ("::1", NAMES),
        ("127.0.0.5", (*NAMES, "127.0.0.5")),
        ("0.0.0.0", ("*",)),
        ("::", ("*",)),
        ("gateway.example", ("*",)),
    ],
)
def test_a_loopback_address_answers_loopback_names_only(host: str, hosts: tuple[str, ...]) -> None:
    assert Settings(host=host).hosts == hosts


def test_the_log_level_may_be_in_capitals() -> None:
    assert Settings(log_level="WARNING").log_level == "warning"


@pytest.mark.parametrize("key", ["", "two words", "kéy", "line\n"])
def test_a_key_that_no_client_can_send_is_refused_and_never_shown(key: str) -> None:
    (problem,) = problems(api_key=key)
    assert problem == "command line: api_key: a key is made of visible ASCII characters, or no client can send it"


def test_an_error_does_not_hold_the_key() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(api_key="sk-secret", port=-1)
    assert caught.value.__context__ is None
    assert "sk-secret" not in str(caught.value)


def test_the_key_is_masked_wherever_settings_are_shown() -> None:
    settings = Settings(api_key="sk-secret")
    assert settings.api_key and settings.api_key.get_secret_value() == "sk-secret"
    assert "sk-secret" not in f"{settings!r} {settings} {sources(settings)}"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def test_every_setting_has_a_description_and_is_named_once_among_the_sources() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    assert [setting.name for setting in sources(Settings())] == list(Settings.model_fields)


@pytest.mark.parametrize(("name", "start"), [("models.yaml", "models.yaml: "), (".env", ".env: cannot be read: ")])
def test_a_file_that_is_not_text_is_an_error(name: str, start: str) -> None:
    Path(name).write_bytes(b"OPENAI_GATEWAY_MODEL=\xff\n")
    assert problems()[0].startswith(f"{start}'utf-8' codec can't decode")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("auto", "auto"), ("12GB", 12 * 10**9), ("1.5 GiB", 3 * 2**29), ("512MiB", 2**29), (4096, 4096), ("4096", 4096),
    ],
)  # fmt: skip
def test_memory_is_written_as_people_write_sizes(text: object, size: object) -> None:
    assert Settings(memory=text).memory == size


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_rate_limits_are_on_and_off_in_yaml_too_where_these_are_no_words(written: str, meant: str) -> None:
    yaml(f"gateway:\n  rate_limits: {written}\n")
    assert Settings().rate_limits == meant


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("{burst: x}", "limits: `burst` is a whole number or `none`, and at most 100000000, not {'burst': 'x'}"),
        ("burst=-1", "limits: `burst` is a whole number or `none`, and at most 100000000, not 'burst=-1'"),
        ("{burts: 1}", "limits: there is no limit `burts`; did you mean `burst`?, not {'burts': 1}"),
    ],
)
def test_a_limit_that_is_none_is_said_in_words(written: str, problem: str) -> None:
    yaml(f"gateway:\n  limits: {written}\n")
    assert problems() == (f"models.yaml, line 2: {problem}",)


@pytest.mark.parametrize("text", ["12 apples", "-1", "0", "all", "", "GB", True])
def test_memory_of_any_other_kind_is_an_error(text: object) -> None:
    (problem,) = problems(memory=text)
    assert "memory: a size is `auto` or a number of bytes" in problem


def test_blas_is_auto_none_or_a_file_that_is_there(tmp_path: Path) -> None:
    assert [Settings(blas=choice).blas for choice in ("auto", "none", __file__)]
    (problem,) = problems(blas=str(tmp_path / "libopenblas.so"))
    assert "is neither `auto` nor `none`, nor a file" in problem


def test_the_older_name_of_the_master_key_is_read_and_the_newer_one_is_stronger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text("GENERATION_API_KEY=one\n")
    key = Settings().api_key
    assert key is not None
    assert key.get_secret_value() == "one"
    monkeypatch.setenv("GENERATION_API_KEY", "two")
    assert source(Settings(), "api_key") == "environment variable GENERATION_API_KEY"
    monkeypatch.setenv("OPENAI_GATEWAY_API_KEY", "three")
    newer = Settings().api_key
    assert newer is not None
    assert newer.get_secret_value() == "three"


def test_keys_are_kept_among_the_data_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().keys_file == tmp_path / ".local/share/openai_gateway/keys.db"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert Settings().keys_file == tmp_path / "data/openai_gateway/keys.db"
    assert Settings(key_store="~/mine.db").keys_file == tmp_path / "mine.db"


def test_a_certificate_needs_its_key() -> None:
    assert problems(tls_certificate="a.pem") == ("tls_certificate and tls_key go together",)


def test_trusted_proxies_are_addresses_and_networks() -> None:
    settings = Settings(trusted_proxies="127.0.0.1, 10.0.0.0/8,fd00::/8")
    assert [str(network) for network in settings.trusted_proxies] == ["127.0.0.1/32", "10.0.0.0/8", "fd00::/8"]
    (problem,) = problems(trusted_proxies="proxy.example")
    assert problem.startswith("command line: trusted_proxies: ")


@pytest.mark.parametrize(
    ("listed", "more"),
    [("127.0.0.1", ["::1/128"]), ("127.0.0.0/8", ["::1/128"]), ("10.0.0.0/8,fd00::/8", []), ("", [])],
)
def test_a_proxy_on_this_machine_is_trusted_at_both_of_its_addresses(listed: str, more: list[str]) -> None:
    settings = Settings(trusted_proxies=listed)
    assert [str(network) for network in settings.proxies[len(settings.trusted_proxies) :]] == more


@pytest.mark.parametrize(
    ("options", "exposed"),
    [({}, False), ({"host": "0.0.0.0"}, True), ({"host": "::1"}, False), ({"trusted_proxies": "127.0.0.1"}, True)],
)
def test_others_can_reach_what_listens_for_them_or_for_a_proxy(options: dict[str, str], exposed: bool) -> None:
    assert Settings(**options).exposed is exposed
