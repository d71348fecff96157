"""What is imported when it is first used.

BlackJAX, whose import computes, which starts a JAX backend and takes seconds; SciPy's distributions, which take half a
second and which most programs do not need.
"""

from __future__ import annotations

import lazy_loader

__all__ = ["blackjax", "load_blackjax", "stats"]

blackjax = lazy_loader.load("blackjax")
stats = lazy_loader.load("scipy.stats", suppress_warning=True)


def load_blackjax() -> None:
    """Import it now. Called before anything is traced, since constants made at an import under a trace are tracers."""
    blackjax.hmc  # noqa: B018
