"""TOML files into frozen dataclasses: names and types are checked, and errors name the key and the known ones."""

import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """The contents of a TOML file; ``what`` says in errors what it describes (recipe, cluster, ...)."""
    try:
        return tomllib.loads(Path(path).read_text())
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"got {what} {path}, expected a TOML file; no such file, check the name") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"got {what} {path}, expected TOML ({error}); correct the file") from None


def require_known(data: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    """ValueError where a key is not among the known ones; ``where`` names the origin of the data."""
    unknown = [key for key in data if key not in known]
    if unknown:
        raise ValueError(
            f"got unknown key {unknown[0]!r} in {where}, expected only {', '.join(known)}; correct the name"
        )


def require_choices(config: Any) -> None:
    """ValueError where a field of a dataclass that has a few possible values has another one."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is typing.Literal:
            _converted(getattr(config, name), hint, name)


def build(kind: type[T], data: dict[str, Any], where: str) -> T:
    """A dataclass from plain data, with names and types checked."""
    hints = typing.get_type_hints(kind)
    require_known(data, tuple(hints), where)
    values = {key: _converted(value, hints[key], f"{key} in {where}") for key, value in data.items()}
    return kind(**values)


def _converted(value: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        options = typing.get_args(hint)
        if value not in options:
            raise ValueError(f"got {value!r} for {where}, expected one of {', '.join(map(str, options))}; choose one")
        return value
    if origin in (types.UnionType, typing.Union):
        return value
    if origin is tuple:  # tuple[str, ...]
        if not isinstance(value, list):
            raise ValueError(f"got {value!r} for {where}, expected a list; put it in brackets")
        return tuple(_converted(item, typing.get_args(hint)[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"got {value!r} for {where}, expected {hint.__name__}; correct it")
    return value
