"""Rules on settings: declared once beside the field, enforced wherever the setting comes from.

A field is written `epochs: Annotated[int, at_least(1)] = 20`. `Section.__post_init__` checks every rule of a dataclass
built in Python; pydantic, which reads YAML files, finds the same rule through `__get_pydantic_core_schema__`, so that a
file's errors carry their path.
"""

import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    get_args,
    get_origin,
    get_type_hints,
)

from trainers.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """A condition on one value. `describe(value)` returns None where it holds, else the message; None always passes."""

    describe: Callable[[Any], str | None]

    def check(self, value: Any) -> Any:
        """Return `value`, or raise ValueError with the rule, the value and the remedy."""
        problem = None if value is None else self.describe(value)
        if problem is not None:
            raise ValueError(problem)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import (
            core_schema,  # only pydantic calls this; `trainers` does not need it
        )

        return core_schema.no_info_after_validator_function(self.check, handler(source))


# what torch and Ray take: int64 and float32
_LARGEST: dict[type, tuple[str, float]] = {int: ("2^63", 2**63), float: ("3.4e38", 3.4e38)}


def _comparison(text: str, holds: Callable[[float], bool]) -> Rule:
    def describe(value: float) -> str | None:
        name, largest = _LARGEST[float if isinstance(value, float) else int]
        if abs(value) < largest and holds(value):  # not for NaN
            return None
        limit = f" and below {name}" if abs(value) >= largest else ""
        return f"must be {text}{limit}, but got {value!r:.60}"

    return Rule(describe)


def at_least(low: float) -> Rule:
    """The value is finite and >= low."""
    return _comparison(f">= {low}", lambda value: value >= low)


def greater_than(low: float) -> Rule:
    """The value is finite and > low."""
    return _comparison(f"> {low}", lambda value: value > low)


def in_interval(low: float, high: float, *, closed: str = "[)") -> Rule:
    """The value lies between low and high; `closed` gives the brackets, "[)" meaning low <= value < high."""

    def holds(value: float) -> bool:
        above = value >= low if closed[0] == "[" else value > low
        below = value <= high if closed[1] == "]" else value < high
        return above and below

    left, right = ("<=" if closed[0] == "[" else "<"), ("<=" if closed[1] == "]" else "<")
    return _comparison(f"a number with {low} {left} value {right} {high}", holds)


def each(rule: Rule) -> Rule:
    """Every element of a sequence obeys `rule`."""

    def describe(values: Any) -> str | None:
        return next((text for value in values if (text := rule.describe(value)) is not None), None)

    return Rule(describe)


def is_printable(text: str) -> bool:
    """Whether a text has neither control characters nor halves of surrogate pairs, which no path should have."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def folder() -> Rule:
    """The value can be the path of a folder on some machine: no URL, no control characters, no name that is too long."""

    def describe(value: str) -> str | None:
        scheme, separator, _ = value.partition("://")
        if separator and scheme.isalnum():
            return f"must be a folder, but is a URL ({scheme}://...)"  # which may hold a password
        if not value or not is_printable(value):
            return f"must be a folder's path without control characters, but got {value!r:.60}"
        if len(value.encode()) > 4000 or any(len(part.encode()) > 255 for part in value.split("/")):
            return f"must be a path of at most 4,000 bytes, 255 for each name in it, but got {value!r:.60}..."
        return None

    return Rule(describe)


def one_of(kind: str, names: Callable[[], Collection[str]], usual: Collection[str] = ()) -> Rule:
    """The value is one of `names()`, looked up late so that a configuration file can be imported on its own.

    `usual` are some of them, for which what holds the others is not imported.
    """

    def describe(value: str) -> str | None:
        return None if value in usual or value in names() else unknown_name(kind, value, names())

    return Rule(describe)


_SHOWN = 60  # characters of a value in a message


def unknown_name(kind: str, value: str, known: Collection[str]) -> str:
    """The message for a name that is not known: the nearest name if one is near, and the list while it is short."""
    near = get_close_matches(value[:_SHOWN], known, n=1)
    names = list(known)
    listed = ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
    hint = f", did you mean {near[0]!r}?" if near else ""
    shown = repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}..."
    return f"unknown {kind} {shown}{hint or ';'} known: {listed}"


class Section:
    """Base of the configuration dataclasses: checks every field's rule at construction, all at once."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        found = [*self._field_problems()]
        found = found or self.problems()
        if found:
            raise ConfigError(found)

    def problems(self) -> list[tuple[str, str]]:
        """Return (field, message) for every rule over several fields that is broken."""
        return []

    def _field_problems(self) -> list[tuple[str, str]]:
        hints = get_type_hints(type(self), include_extras=True)
        found = []
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            hint, value = hints[field.name], getattr(self, field.name)
            if get_origin(hint) is Annotated:
                hint, *rules = get_args(hint)
                texts = [text for rule in rules if value is not None and (text := rule.describe(value)) is not None]
                found += [(field.name, text) for text in texts]
            if get_origin(hint) is Literal and value not in get_args(hint):
                found.append((field.name, unknown_name("value", str(value), [str(known) for known in get_args(hint)])))
        return found
