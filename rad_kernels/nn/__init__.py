"""Drop-in layers: torch's own with the same parameters, and a sketch of what they keep for backward."""

from .activation import ReLU
from .attention import MultiheadAttention
from .dropout import Dropout
from .linear import Linear

__all__ = ["Dropout", "Linear", "MultiheadAttention", "ReLU"]
