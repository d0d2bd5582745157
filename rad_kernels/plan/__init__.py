"""Fitting a model into a budget of memory: what to keep of each layer, by closed forms of the noise."""

from .fit import fit
from .result import Plan, PlanRow

__all__ = ["Plan", "PlanRow", "fit"]
