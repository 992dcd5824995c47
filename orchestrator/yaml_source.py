"""A YAML file as plain data that remembers on which line each key stands."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainers.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that 1e-3 is a number and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        repeated = {str(key) for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.MarkedYAMLError(
                problem=f"the key {sorted(repeated)[0]!r} stands twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


@dataclass
class YamlSource:
    """Settings read from `path`, the line of each, and which were set on the command line instead."""

    path: Path
    data: dict[str, Any]
    lines: dict[tuple[str, ...], int]

    @staticmethod
    def read(path: Path) -> "YamlSource":
        """Read the file; raises ConfigError where it is missing, not YAML, or not a mapping of settings."""
        try:
            text = path.read_text()
            node = yaml.compose(text, Loader=_Loader)
            data = yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([(str(path), f"must be a readable YAML file, but: {error}")]) from error
        except yaml.YAMLError as error:
            raise ConfigError([(str(path), f"must be valid YAML, but: {' '.join(str(error).split())}")]) from error
        if not isinstance(data, dict):
            raise ConfigError([(str(path), f"must hold settings (key: value), but holds {type(data).__name__}")])
        return YamlSource(path, data, dict(_lines(node)))

    def set(self, keys: tuple[str, ...], value: Any) -> None:
        """Put one setting in; sections on the way are made where they are missing."""
        section = self.data
        for key in keys[:-1]:
            inner = section.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigError([(f"--set {'.'.join(keys)}", f"{key!r} is a value, not a section")])
            section = inner
        section[keys[-1]] = value
        self.lines.pop(keys, None)

    def place(self, path: tuple[str, ...]) -> str:
        """Where a setting stands: `file:line: a.b`, without the line where it is not in the file."""
        name = ".".join(path) or "the file"
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)
        return f"{self.path}:{line}: {name}" if line and path in self.lines else f"{self.path}: {name}"


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split `a.b=c` into (("a", "b"), c) with c read as YAML."""
    name, equals, value = text.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise ConfigError([("--set", f"must be KEY=VALUE, e.g. --set search.num_trials=8, but got {text!r}")])
    try:
        return keys, yaml.load(value, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError([(f"--set {name}", f"the value must be valid YAML, but: {error}")]) from error


def _lines(node: yaml.Node | None, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], int]]:
    if not isinstance(node, yaml.MappingNode):
        return []
    found = []
    for key, value in node.value:
        here = (*path, str(key.value))
        found += [(here, key.start_mark.line + 1), *_lines(value, here)]
    return found
