"""Frozen dataclasses ↔ JSON values, strictly.

`from_json` refuses unknown keys, missing keys and wrong types with a sentence that names the place, so
that a file written by another version of the code is an error and not a guess.
"""

import dataclasses
import types
import typing
from enum import Enum
from typing import Any, TypeVar

from dpo_studio.errors import BadInput

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Plain JSON value of a dataclass, enum, tuple or scalar."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    return value


def from_json(kind: type[T], value: Any, *, where: str = "") -> T:
    """Build `kind` from a JSON value. Raises BadInput naming the place that does not fit."""
    built = _decode(kind, value, where or kind.__name__)
    return typing.cast(T, built)


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise BadInput(f"{where}: expected one of {list(arguments)}, found {value!r}")
        return value
    if origin is tuple:
        items = _expect(list, value, where)
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        items = _expect(dict, value, where)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in items.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, _expect(dict, value, where), where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            choices = [member.value for member in kind]
            raise BadInput(f"{where}: expected one of {choices}, found {value!r}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _expect(kind, value, where)


def _decode_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    (kind,) = (argument for argument in arguments if argument is not type(None))
    return _decode(kind, value, where)


def _decode_dataclass(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise BadInput(f"{where}: unknown key {unknown[0]!r}; known are {sorted(fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in value
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise BadInput(f"{where}: missing key {missing[0]!r}")
    return kind(**{name: _decode(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _expect(kind: Any, value: Any, where: str) -> Any:
    # bool is an int in Python, not in JSON.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        name = getattr(kind, "__name__", str(kind))
        raise BadInput(f"{where}: expected {name}, found {type(value).__name__}")
    return value
