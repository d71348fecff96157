"""Posteriors and flows as files, and as ArviZ sees them."""

from .arviz_bridge import from_arviz, from_numpyro, to_arviz
from .store import Run, load_run

__all__ = [
    "Run",
    "from_arviz",
    "from_numpyro",
    "load_run",
    "to_arviz",
]
