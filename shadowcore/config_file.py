"""Read a configuration file: YAML without repeated keys. Errors name file and line."""

from pathlib import Path
from typing import Any

import yaml

from shadowcore.errors import ConfigError


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError with the line if it is anything else."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    try:
        data = _Loader(text).get_single_data()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{path}: not YAML{_line(error)} ({_reason(error)})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    if data is None:
        raise ConfigError(f"{path}: the file is empty; a study needs keys such as `study` and `models`")
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path}: the file contains a {type(data).__name__}; a study is a mapping of keys such as `study: mine`"
        )
    return data


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, because YAML readers silently keep the last one."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise ConfigError(
                    f"line {line}: the key '{key.value}' is already given on line {lines[name]}; a key may be given "
                    "once"
                )
            lines[name] = line
        return node


def _line(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f", line {mark.line + 1}" if mark else ""


def _reason(error: yaml.MarkedYAMLError) -> str:
    if "'\\t'" in str(error.problem):
        return "a tab; indent with spaces"
    return " ".join(filter(None, (error.context, error.problem))).replace("\n", " ")
