"""Named random streams."""

from __future__ import annotations

import zlib

import jax
from jax.random import fold_in


def name_key(key: jax.Array, name: str) -> jax.Array:
    """Key of a named stream: `key` folded with the name, so that draws never depend on a position."""
    return fold_in(key, zlib.crc32(name.encode()))
