"""Settings of a run: names and values, and text read as the type of a default."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Settings", "like", "nearest"]


class Settings(Mapping):
    """Settings of one run, read as attributes: ``settings.width``. A mapping that does not change."""

    def __init__(self, values: Mapping[str, Any]):
        object.__setattr__(self, "_values", dict(values))

    def __getitem__(self, name):
        return self._values[name]

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"the experiment has no setting {name!r}{nearest(name, self._values)}") from None

    def __setattr__(self, name, value):
        raise AttributeError("settings do not change during a run; pass settings= to run")

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)

    def __repr__(self):
        return f"Settings({', '.join(f'{k}={v!r}' for k, v in self._values.items())})"


def nearest(name: str, known) -> str:
    """A hint at the known name that was probably meant, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def like(default: Any, value: Any, name: str) -> Any:
    """`value` as the type of `default`; text is parsed."""
    def wrong(expected: str):
        return ValueError(f"setting {name!r} must be {expected} like its default {default!r}, got {value!r}")

    if isinstance(default, bool):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        found = words.get(str(value).lower())
        if found is None:
            raise wrong("true or false")
        return found
    if isinstance(default, (int, float)):
        kind, expected = (int, "a whole number") if isinstance(default, int) else (float, "a number")
        try:
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            raise wrong(expected) from None
        if isinstance(value, bool) or (not isinstance(value, str) and number != value) or not np.isfinite(number):
            raise wrong(expected)
        return number
    if isinstance(default, (list, tuple)):
        parts = [p.strip() for p in value.split(",") if p.strip()] if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)) or not default:
            raise wrong("a comma-separated list")
        return type(default)(like(default[0], p, name) for p in parts)
    if isinstance(default, str):
        if not isinstance(value, str):
            raise wrong("text")
        return value
    raise TypeError(f"setting {name!r} has a default of type {type(default).__name__}; settings are numbers, "
                    "true or false, text, or lists of these")
