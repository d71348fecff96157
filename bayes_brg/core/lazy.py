"""BlackJAX, imported when it is first used: its import computes, which starts a JAX backend and takes seconds."""

from __future__ import annotations

import lazy_loader

__all__ = ["blackjax", "load_blackjax"]

blackjax = lazy_loader.load("blackjax")


def load_blackjax() -> None:
    """Import it now. Called before anything is traced, since constants made at an import under a trace are tracers."""
    blackjax.hmc  # noqa: B018
