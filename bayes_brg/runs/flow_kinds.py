"""The flows that an experiment can ask for by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from ..core.checks import check_choice
from ..flow.fibre import renormalize_fibre
from ..flow.flow import Flow
from ..flow.regulators import as_regulator
from ..flow.renormalize import REFILLS, renormalize
from ..flow.tempered import renormalize_tempered
from ..metric.metric import Metric
from ..posterior import Posterior
from .data import Data

__all__ = ["FLOW_KINDS", "FlowKind", "flow_kind"]


class FlowKind(NamedTuple):
    """A way to a flow: its function, and whether that takes the data in place of a metric."""

    function: Callable[..., Flow]
    of_data: bool = False

    @property
    def options(self) -> list[str]:
        """What an experiment may say of it."""
        given = ("model", "posterior", "metric", "x", "y", "key")
        return ["kind", *(name for name in inspect.signature(self.function).parameters if name not in given)]

    def make(self, model: Any, posterior: Posterior, metric: Metric, data: Callable[[], Data], key: jax.Array,
             options: Mapping[str, Any]) -> Flow:
        """The flow. One that needs no metric keeps that by which its cutoffs were spaced."""
        if not self.of_data:
            return self.function(model, posterior, metric, key=key, **options)
        found = data()
        made: Any = self.function(model, posterior, found.x, found.y, key=key, **options)
        return replace(made, metric=metric)


FLOW_KINDS = {"straight": FlowKind(renormalize), "fibre": FlowKind(renormalize_fibre),
              "tempered": FlowKind(renormalize_tempered, of_data=True)}
"""``"straight"``: along the metric's directions, `renormalize`; ``"fibre"``: `renormalize_fibre`, whose metric is full,
whitened and at every draw; ``"tempered"``: `renormalize_tempered`."""


def flow_kind(options: Mapping[str, Any]) -> tuple[FlowKind, dict[str, Any]]:
    """The kind of flow that an experiment's options name, and the options of its function; refuses unknown words."""
    kind = FLOW_KINDS[check_choice(options.get("kind", "straight"), "kind of flow", FLOW_KINDS)]
    own = {name: value for name, value in options.items() if name != "kind"}
    if "refill" in own:
        check_choice(own["refill"], "refill", REFILLS)
    if "regulator" in own:
        as_regulator(own["regulator"])
    return kind, own
