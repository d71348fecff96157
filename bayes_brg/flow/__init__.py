"""The Bayesian renormalisation-group flow of a posterior (theory §2)."""

from .closed_form import closed_form_differences, closed_form_flow
from .critical_scale import CriticalScale, critical_scale, flow_differences
from .cutoffs import cutoffs
from .fibre import renormalize_fibre
from .flow import Flow
from .mapped import MappedFlow
from .pruning import pruning_curve, removable_fraction
from .refills import Refill
from .regulators import Regulator, unlearning
from .renormalize import renormalize
from .sampled import SampledFlow
from .stepwise import StepwiseFlow, renormalize_stepwise
from .tempered import TemperedFlow, renormalize_tempered

__all__ = [
    "CriticalScale",
    "Flow",
    "MappedFlow",
    "Refill",
    "Regulator",
    "SampledFlow",
    "StepwiseFlow",
    "TemperedFlow",
    "closed_form_differences",
    "closed_form_flow",
    "critical_scale",
    "cutoffs",
    "flow_differences",
    "pruning_curve",
    "removable_fraction",
    "renormalize",
    "renormalize_fibre",
    "renormalize_stepwise",
    "renormalize_tempered",
    "unlearning",
]
