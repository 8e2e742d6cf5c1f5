"""Settings: dataclasses whose fields carry a meaning and limits, made from words and files with every value checked.

A field whose value is one of several dataclasses has a table of `choices`; in files it is a mapping with the `name` of
the one that was chosen, on the command line the name alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import Field, TypeAdapter

from regio.yaml_text import read_yaml

__all__ = ["Setting", "UnknownSetting", "as_dict", "dotted", "from_dict", "named", "override", "setting", "settings_of"]

T = TypeVar("T")
Path = tuple[str, ...]
_HINTS: dict[type, dict[str, Any]] = {}  # they take most of the time in which a setting is found


class UnknownSetting(ValueError):
    """A configuration has no setting of the name `key`."""

    def __init__(self, key: str, hint: str) -> None:
        super().__init__(f"{key}: no such setting{hint}")
        self.key = key


def setting(default: Any, meaning: str, *, choices: Mapping[str, type] | None = None, **limits: Any) -> Any:
    """A field of a dataclass of settings.

    meaning: in a few words, as `regio config` prints it. choices: the dataclasses that the value may be one of, by
    name. limits: those of `pydantic.Field`, such as ``ge=1``.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning, "choices": choices, "limits": limits})


@dataclass(frozen=True)
class Setting:
    """One setting of a configuration.

    path: the names of the fields that lead to it. kind: its type in words. value: the present one; the name of what is
    chosen for one with choices.
    """

    path: Path
    kind: str
    value: Any
    meaning: str


def named(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry `name` of `table`; ValueError with the names there are for any other."""
    if name not in table:
        raise ValueError(f"{what}: expected one of {', '.join(table)}, got '{name}'")
    return table[name]


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """The object of the dataclass `kind` that plain values, of YAML or JSON, describe. where: the beginning of the
    names in messages.

    Raises ValueError for a key that `kind` does not have, a value of another type or out of its limits, and a missing
    one.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where.rstrip('.') or kind.__name__}: expected settings by name, got {values!r}")
    fields, hints = _fields(kind), _hints(kind)
    for key in values:
        if key not in fields:
            raise ValueError(f"{where}{key}: no such setting{_hint(str(key), list(fields))}")
    for key, field in fields.items():
        if key not in values and field.default is dataclasses.MISSING:
            raise ValueError(f"{where}{key}: expected {_words(hints[key], field)}, got nothing")
    made = {key: _checked(fields[key], hints[key], value, where + key) for key, value in values.items()}
    return kind(**made)


def as_dict(config: Any) -> dict[str, Any]:
    """The inverse of `from_dict`: plain values for YAML or JSON.

    Raises ValueError where a choice is an object that its table does not have.
    """
    return {key: _plain(field, getattr(config, key)) for key, field in _fields(type(config)).items()}


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Plain values, in mappings, as words by their dotted names: ``{"model.channels": "64"}``."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: str(value)}
    return found


def override(config: T, assignments: Sequence[str]) -> T:
    """`config` with settings changed by assignments such as "channels=256" or "optimizer.lr=0.01".

    A key is the names of the fields that lead to a setting, of which the first may be left out where that leaves no
    doubt: "channels" is "model.channels". Values are YAML. Choices are made first, in whatever order they come; one
    that is made anew starts from its defaults. Raises ValueError for a word without "=", a key that is ambiguous, and a
    value of another type or out of its limits, and UnknownSetting, which is one, for a key that is unknown (with the
    closest ones).
    """
    pending = []
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"{assignment}: expected key=value")
        pending.append((key, text))
    depth = 0
    while pending:
        depth += 1
        later = []
        for key, text in pending:
            path = _find(config, key, depth)
            if path is None:
                later.append((key, text))
            else:
                config = _assign(config, path, text, key)
        if len(later) == len(pending) and depth > _depth(config):
            names = [".".join(each.path) for each in settings_of(config)]
            close = names + [name.rpartition(".")[2] for name in names]
            raise UnknownSetting(later[0][0], _hint(later[0][0], close, names))
        pending = later
    return config


def settings_of(config: Any) -> Iterator[Setting]:
    """All settings of `config`, those of a part after the part."""
    for path, owner in _paths(config):
        field, value = _fields(type(owner))[path[-1]], getattr(owner, path[-1])
        choices = field.metadata.get("choices")
        shown = _name(choices, value) if choices else value
        yield Setting(path, _words(_hints(type(owner))[path[-1]], field), shown, field.metadata.get("meaning", ""))


def _paths(config: Any, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The path of each setting, and the part of `config` that has it."""
    for key, field in _fields(type(config)).items():
        value, path = getattr(config, key), (*prefix, key)
        if field.metadata.get("choices") or not dataclasses.is_dataclass(value):
            yield path, config
        if dataclasses.is_dataclass(value):
            yield from _paths(value, path)


def _fields(kind: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(kind)}


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


def _checked(field: dataclasses.Field[Any], hint: Any, value: Any, where: str) -> Any:
    choices = field.metadata.get("choices")
    if choices:
        values = {"name": value} if isinstance(value, str) else value
        if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
            raise ValueError(f"{where}: expected one of {', '.join(choices)}, got {value!r}")
        rest = {key: each for key, each in values.items() if key != "name"}
        return from_dict(named(choices, values["name"], where), rest, f"{where}.")
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{where}.")  # type: ignore[arg-type]
    if get_origin(hint) is tuple and not isinstance(value, list | tuple):
        value = [value]
    try:  # of JSON, since it has lists alone for what are tuples here
        limits = Field(**field.metadata.get("limits", {}))
        return TypeAdapter(Annotated[hint, limits]).validate_json(json.dumps(value, allow_nan=False), strict=True)
    except (ValueError, TypeError):  # pydantic's, or of numbers that are not finite
        raise ValueError(f"{where}: expected {_words(hint, field)}, got {value!r}") from None


def _plain(field: dataclasses.Field[Any], value: Any) -> Any:
    choices = field.metadata.get("choices")
    if choices:
        return {"name": _name(choices, value), **as_dict(value)}
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    return list(value) if isinstance(value, tuple) else value


def _name(choices: Mapping[str, type], value: Any) -> str:
    for name, kind in choices.items():
        if type(value) is kind:
            return name
    raise ValueError(f"{value}: expected one of {', '.join(choices)}")


def _depth(config: Any) -> int:
    return max(len(path) for path, _ in _paths(config))


def _find(config: Any, key: str, depth: int) -> Path | None:
    """The path of at most `depth` names that `key` is the end of."""
    wanted = tuple(key.split("."))
    paths = [path for path, _ in _paths(config) if path[-len(wanted) :] == wanted]
    if wanted in paths:
        paths = [wanted]
    if not paths or min(map(len, paths)) > depth:
        return None
    if len(paths) > 1:
        raise ValueError(f"{key}: expected one of {', '.join('.'.join(path) for path in paths)}, which it may mean")
    return paths[0]


def _assign(config: Any, path: Path, text: str, key: str) -> Any:
    name, *rest = path
    old, field = getattr(config, name), _fields(type(config))[name]
    if rest:
        return dataclasses.replace(config, **{name: _assign(old, tuple(rest), text, key)})
    hint = _hints(type(config))[name]
    value = text if _is_text(hint) and text != "null" else _yaml(text)
    if field.metadata.get("choices") and value == _name(field.metadata["choices"], old):
        return config
    return dataclasses.replace(config, **{name: _checked(field, hint, value, key)})


def _is_text(hint: Any) -> bool:
    words = get_origin(hint) is Literal and all(isinstance(each, str) for each in get_args(hint))
    return words or hint is str or set(get_args(hint)) == {str, NoneType}


def _yaml(text: str) -> Any:
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text


def _hint(key: str, names: Sequence[str], shown: Sequence[str] | None = None) -> str:
    close = list(dict.fromkeys(difflib.get_close_matches(key, names, n=3)))
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(shown or names)}"


def _words(hint: Any, field: dataclasses.Field[Any]) -> str:
    """The type of a setting as people write it, with its limits."""
    choices, limits = field.metadata.get("choices"), field.metadata.get("limits", {})
    if choices:
        return f"one of {', '.join(choices)}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = " and ".join(f"{signs[name]} {limit:g}" for name, limit in limits.items() if name in signs)
    return _type(hint) + (f" {bounds}" if bounds else "")


def _type(hint: Any) -> str:
    if isinstance(hint, UnionType):
        return " or ".join("null" if each is NoneType else _type(each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is Annotated:
        return _type(get_args(hint)[0])
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if kinds[1:] == (...,):
            return f"a list [{_type(kinds[0]).split(' ', 1)[1]}, ...]"
        return f"a list [{', '.join(_type(kind).split(' ', 1)[1] for kind in kinds)}]"
    names = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
