"""Where settings come from: the command line, the environment, `.env`, and the `gateway:` section of models.yaml."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource

PREFIX = "OPENAI_GATEWAY_"
MODELS_FILE = Path("models.yaml")
SECRETS = ("api_key", "redis_url")
OLDER = {"generation_api_key": "api_key"}
"""Variables of earlier deployments, in lower case → the settings that they are now."""


class Given(NamedTuple):
    """A value as somebody wrote it, and where."""

    value: Any
    where: str


def gather(settings: type[BaseSettings], options: Mapping[str, Any], problems: list[str]) -> dict[str, Given]:
    """What was written anywhere, the strongest place for each name; what is wrong is added to `problems`."""
    given = _dotenv(settings, problems) | _variables(EnvSettingsSource(settings).env_vars, "environment variable {}")
    given |= {name: Given(value, "command line") for name, value in options.items()}
    if "models_file" not in given and MODELS_FILE.exists():
        given["models_file"] = Given(MODELS_FILE, "default")
    path = given["models_file"].value if "models_file" in given else None
    section = {} if path is None else _section(Path(str(path)).expanduser(), problems)
    if "models_file" in section:
        problems.append(f"{section['models_file'].where}: the file cannot name itself with `models_file`")
    for name, (_, where) in (*section.items(), *given.items()):
        if name not in settings.model_fields:
            near = difflib.get_close_matches(name, settings.model_fields, 1)
            problems.append(f"{where}: there is no setting `{name}`" + (f"; did you mean `{near[0]}`?" if near else ""))
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
    """The `gateway:` section of a models.yaml, each value with its line."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        lines = _lines(root, path)  # before merge keys (`<<`) are resolved: they may repeat a name, nothing else may
        content = loader.construct_document(root) if root else None
        if not isinstance(content, dict | None) or not isinstance((content or {}).get("gateway"), dict | None):
            raise ValueError("the file and its `gateway:` section hold `name: value` lines")
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
        return {}
    except (ValueError, yaml.YAMLError) as error:
        problems.append(yaml_problem(path, error))
        return {}
    section: dict[Any, Any] = (content or {}).get("gateway") or {}
    return {str(name): Given(value, lines.get(str(name), str(path))) for name, value in section.items()}


def yaml_problem(file: Path | str, error: Exception) -> str:
    """What is wrong in which line, without the words that stand there: there may be a key among them."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    unquoted = re.sub(r" '[^'<][^']{2,}'", "", what)  # '<scalar>' and single characters are the parser's own words
    return f"{file}, line {mark.line + 1}: {unquoted}" if mark else f"{file}: {unquoted}"


def _lines(root: yaml.Node | None, path: Path) -> dict[str, str]:
    """Where each name of the `gateway:` section stands."""
    top = root.value if isinstance(root, yaml.MappingNode) else []
    sections = [value for key, value in top if key.value == "gateway" and isinstance(value, yaml.MappingNode)]
    places: dict[str, str] = {}
    for key, _ in (item for section in sections for item in section.value):
        if str(key.value) in places:
            raise yaml.MarkedYAMLError(problem=f"`{key.value}` stands here twice", problem_mark=key.start_mark)
        places[str(key.value)] = f"{path}, line {key.start_mark.line + 1}"
    return places


def explain(detail: ErrorDetails, given: Mapping[str, Given]) -> str:
    """A value of the wrong kind as a sentence that says where it stands; a key is not shown."""
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0])
    shown = "" if name in SECRETS else f", not {detail['input']!r}"
    return f"{given[name].where}: {name}: {message}{shown}"
