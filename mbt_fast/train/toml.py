"""TOML files and ``key=value`` overrides as flat tables: dotted key to value."""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mbt_fast.errors import InputError

_NUMBER = re.compile(r"[+-]?(\d+\.|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)  # not in TOML
_VALUES = (bool, int, float, str, list, dict)  # a date is none


def read(path: Path) -> dict[str, Any]:
    """Read a file as a flat table.

    Raises:
        InputError: It cannot be read, or is not TOML.
    """
    try:
        return flatten(_loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
    except ValueError as error:
        raise InputError(f"{path}: not TOML: {error}") from error


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Read overrides as a flat table; a later one wins.

    Args:
        overrides: ``section.key=value``; the value is TOML, or else a string without its quotes.

    Raises:
        InputError: One is not of that form.
    """
    table: dict[str, Any] = {}
    for text in overrides:
        key, sign, value = text.partition("=")
        key = key.strip()
        if not sign or "." not in key or not all(key.split(".")):
            raise InputError(f"an override must be section.key=value, got {text!r}")
        table |= flatten({key: _value(value.strip())})
    return table


def dumps(table: Mapping[str, Any]) -> str:
    """A nested table as TOML."""
    import tomli_w

    return tomli_w.dumps(table)


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, whose keys are dotted."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of ``flatten``.

    Raises:
        InputError: A key is a value and a table at once.
    """
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *tables, name = key.split(".")
        place = nested
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise InputError(f"{key} must not be given beside a value of {table}")
        if isinstance(place.get(name), dict):
            raise InputError(f"{key} must be a table, got {value!r}")
        place[name] = value
    return nested


def _value(text: str) -> Any:
    """A TOML value, or a number such as ``.1``; the rest are strings: ``train.csv``, a date."""
    try:
        parsed = _loads(f"value = {text}")
    except ValueError:
        return float(text) if _NUMBER.fullmatch(text) else text
    value = parsed.pop("value")
    return text if parsed or not isinstance(value, _VALUES) else value


def _loads(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    return tomllib.loads(text)
