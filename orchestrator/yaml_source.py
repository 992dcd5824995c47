"""A YAML file as plain data that remembers on which line each key stands."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainers.errors import ConfigError

_MAX_BYTES = 2**18  # PyYAML reads some ten kilobytes in a tenth of a second
_MAX_VALUES, _MAX_DEPTH = 20_000, 32  # with each alias written out
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that 1e-3 is a number and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node in [key for key, _ in node.value if key.tag != _MERGE]:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | None):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {str(key)!r} stands twice", problem_mark=node.start_mark)
            seen.add(key)
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
            if path.exists() and not path.is_file():
                raise ConfigError([(str(path), "must be a readable YAML file, but is not a file")])
            with path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
            text = content.decode()
        except (OSError, ValueError) as error:
            raise ConfigError([(str(path), f"must be a readable YAML file, but: {error}")]) from error
        if len(content) > _MAX_BYTES:
            raise ConfigError([(str(path), f"must have at most {_MAX_BYTES:,} bytes, but has more")])
        try:
            node, data = _parsed(text)
        except ValueError as error:
            raise ConfigError([(str(path), f"must be valid YAML, but: {error}")]) from error
        if not isinstance(data, dict):
            raise ConfigError([(str(path), f"must hold settings (key: value), but holds {type(data).__name__}")])
        return YamlSource(path, data, dict(_lines(node)))

    def as_json(self) -> str:
        """Return the settings as JSON; raises ConfigError for text that no file can hold."""
        text = json.dumps(self.data, default=str, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                [(str(self.path), f"must hold text, but: {error.reason} ({error.object[error.start]!r})")]
            ) from None
        return text

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
        return keys, _parsed(value)[1]
    except ValueError as error:
        raise ConfigError([(f"--set {name}", f"the value must be valid YAML, but: {error}")]) from error


def _parsed(text: str) -> tuple[yaml.Node | None, Any]:
    """Return the text's nodes and what they stand for; raises ValueError with one line."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        _require_small(node)
        return node, yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # PyYAML raises more than its own errors, such as for the 31st of February
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _require_small(root: yaml.Node | None) -> None:
    """Refuse aliases that would grow without end: nothing has been made of the nodes yet."""
    count, waiting = 0, [] if root is None else [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if count > _MAX_VALUES or depth > _MAX_DEPTH:
            raise ValueError(
                f"it must hold at most {_MAX_VALUES:,} values, {_MAX_DEPTH} deep, with aliases written out, but holds more"
            )
        if isinstance(node, yaml.CollectionNode):
            for item in node.value:
                waiting += [(part, depth + 1) for part in (item if isinstance(item, tuple) else (item,))]


def _lines(node: yaml.Node | None, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], int]]:
    if not isinstance(node, yaml.MappingNode):
        return []
    found = []
    for key, value in node.value:
        here = (*path, str(key.value))
        found += [(here, key.start_mark.line + 1), *_lines(value, here)]
    return found
