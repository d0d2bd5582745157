from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from ..sketch import Sketch


class Linear(torch.nn.Linear):
    """``torch.nn.Linear`` that keeps a sketch of its input for the weight gradient.

    Output, dx and db are exact, dW is unbiased (``functional.linear``). ``eval()`` is exact. Parameters,
    state_dict keys and initialisation are those of torch.nn.Linear.

    Args:
        in_features, out_features, bias, device, dtype: as torch.nn.Linear.
        sketch: what is kept in training; may be changed at any time.

    Raises:
        TypeError: sketch is not a Sketch, at construction or when it is changed.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sketch: Sketch,
    ) -> None:
        functional.check_sketch(sketch)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.sketch = sketch

    @property
    def sketch(self) -> Sketch:
        return self._sketch

    @sketch.setter
    def sketch(self, value: Sketch) -> None:
        functional.check_sketch(value)
        self._sketch = value

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.linear(x, self.weight, self.bias, self.sketch)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sketch={self.sketch}"
