"""Where settings come from: the command line, the environment, `.env`, and the `gateway:` section of models.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource

from openai_gateway.settings_kinds import expanded, unknown

PREFIX = "OPENAI_GATEWAY_"
MODELS_FILE = Path("models.yaml")
SECTIONS = ("gateway", "models")
SECRETS = ("api_key", "redis_url")
OLDER = {"generation_api_key": "api_key"}
"""Variables of earlier deployments, in lower case → the settings that they are now."""


class Given(NamedTuple):
    """A value as somebody wrote it, and where."""

    value: Any
    where: str


class Written(NamedTuple):
    """What a models.yaml holds: its `gateway:` section, and whatever stands under `models:`."""

    gateway: Mapping[object, Any]
    models: Any
    file: Path
    root: yaml.Node | None

    def place(self, *steps: str | int) -> str:
        """The line where something stands, by the names, and the places in lists, that lead to it."""
        node, line = self.root, ""
        for step in map(str, steps):
            if (found := _inside(node).get(step)) is None:
                break
            line, node = f", line {found[0] + 1}", found[1]
        return f"{self.file}{line}"


def _inside(node: yaml.Node | None) -> dict[str, tuple[int, yaml.Node]]:
    """What a mapping or a list holds, by its names or by 0, 1, 2 …, each with its line."""
    if isinstance(node, yaml.MappingNode):
        return {str(name.value): (name.start_mark.line, value) for name, value in node.value}
    entries = node.value if isinstance(node, yaml.SequenceNode) else ()
    return {str(place): (entry.start_mark.line, entry) for place, entry in enumerate(entries)}


def gather(settings: type[BaseSettings], options: Mapping[str, Any], problems: list[str]) -> dict[str, Given]:
    """What was written anywhere, the strongest place for each name; what is wrong is added to `problems`."""
    given = _dotenv(settings, problems) | _variables(EnvSettingsSource(settings).env_vars, "environment variable {}")
    given |= {name: Given(value, "command line") for name, value in options.items()}
    if "models_file" not in given and MODELS_FILE.exists():
        given["models_file"] = Given(MODELS_FILE, "default")
    path = given["models_file"].value if "models_file" in given else None
    section = {} if path is None else _section(Path(str(path)), problems)
    if "models_file" in section:
        problems.append(f"{section['models_file'].where}: the file cannot name itself with `models_file`")
    for name, (_, where) in (*section.items(), *given.items()):
        if name not in settings.model_fields:
            problems.append(f"{where}: {unknown('setting', name, settings.model_fields)}")
    merged = section | given
    return {name: merged[name] for name in settings.model_fields if name in merged}


def _variables(variables: Mapping[str, str | None], where: str) -> dict[str, Given]:
    """Ours among some variables, whose names pydantic-settings has put into lower case."""
    ours = {name: value for name, value in variables.items() if name.startswith(PREFIX.lower())}
    found = {name[len(PREFIX) :]: Given(value, where.format(name.upper())) for name, value in ours.items()}
    older = {name: Given(variables[old], where.format(old.upper())) for old, name in OLDER.items() if old in variables}
    return older | found


def _dotenv(settings: type[BaseSettings], problems: list[str]) -> dict[str, Given]:
    try:
        return _variables(DotEnvSettingsSource(settings, env_file=".env").env_vars, ".env, {}")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f".env: cannot be read: {error}")
        return {}


def _section(path: Path, problems: list[str]) -> dict[str, Given]:
    try:
        written = read_file(expanded(path))
        return {str(name): Given(value, written.place("gateway", str(name))) for name, value in written.gateway.items()}
    except ValueError as error:
        problems.append(str(error))
        return {}


def read_file(path: Path) -> Written:
    """A models.yaml. Raises ValueError with what is wrong, and where."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = _Loader(text)
        root = loader.get_single_node()
        content = loader.construct_document(root) if root else None
        content = {} if content is None else content
        if not isinstance(content, dict) or not isinstance(content.get("gateway"), dict | None):
            raise ValueError("the file and its `gateway:` section hold `name: value` lines")
        if root and content:
            _check_sections(root, text)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(_problem(path, error)) from None
    return Written(content.get("gateway") or {}, content.get("models"), path, root)


def _check_sections(root: yaml.Node, text: str) -> None:
    """Of what stands at the top, only what has an anchor (`&name`), for others to use, may be called anything."""
    for name, value in root.value:
        if name.value not in SECTIONS and not text.startswith("&", value.start_mark.index):
            raise yaml.MarkedYAMLError(problem=unknown("section", name.value, SECTIONS), problem_mark=name.start_mark)


class _Loader(yaml.SafeLoader):
    """Refuses a name that stands in a mapping twice, as YAML does; PyYAML takes the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Once merge keys (`<<`) are resolved it would be too late: they may repeat a name.
        node = super().compose_mapping_node(anchor)
        names = set()
        for name, _ in node.value:
            if str(name.value) in names:
                raise yaml.MarkedYAMLError(problem=f"`{name.value}` stands here twice", problem_mark=name.start_mark)
            names.add(str(name.value))
        return node


def _problem(file: Path | str, error: Exception) -> str:
    """What is wrong in which line, without the words that stand there: there may be a key among them."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    unquoted = re.sub(r" '[^'<][^']{2,}'", "", what)  # '<scalar>' and single characters are the parser's own words
    return f"{file}, line {mark.line + 1}: {unquoted}" if mark else f"{file}: {unquoted}"


def explain(detail: ErrorDetails, given: Mapping[str, Given]) -> str:
    """A value of the wrong kind as a sentence that says where it stands; a key is not shown."""
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0])
    shown = "" if name in SECRETS else f", not {detail['input']!r}"
    return f"{given[name].where if name in given else 'default'}: {name}: {message}{shown}"
