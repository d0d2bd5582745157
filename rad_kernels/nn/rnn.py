from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import functional
from ..sketch import Sketch
from ._signature import LikeTorch

_CELLS = {"RNN_RELU": "relu", "RNN_TANH": "tanh", "LSTM": "lstm", "GRU": "gru"}


class _Recurrent(LikeTorch, torch.nn.RNNBase):
    """What the three layers add to torch's: three keywords and the forward pass."""

    def __init__(
        self, *args: Any, sketch: Sketch, bits: int | None = 8, return_sequence: bool = True, **kwargs: Any
    ) -> None:
        functional.check_sketch(sketch)
        functional.check_bits(bits)
        super().__init__(*args, **kwargs)
        if self.proj_size:
            raise ValueError(f"proj_size must be 0, got {self.proj_size}: projections are not supported")
        self._sketch, self._bits, self.return_sequence = sketch, bits, return_sequence

    @property
    def sketch(self) -> Sketch:
        return self._sketch

    @sketch.setter
    def sketch(self, value: Sketch) -> None:
        functional.check_sketch(value)
        self._sketch = value

    @property
    def bits(self) -> int | None:
        return self._bits

    @bits.setter
    def bits(self, value: int | None) -> None:
        functional.check_bits(value)
        self._bits = value

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        if not self.training:
            y, states = super().forward(input, hx)
            return (y if self.return_sequence else None), states
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        functional.check_tensor("input", input)
        if input.dim() not in (2, 3):
            raise ValueError(f"input must have 2 or 3 dimensions, got shape {tuple(input.shape)}")
        if input.dim() == 2:
            if hx is not None:
                hx = _each(hx, lambda state: state.unsqueeze(1))
            y, states = self._run(input.unsqueeze(1), hx, 1, None)
            return (None if y is None else y.squeeze(1)), _each(states, lambda state: state.squeeze(1))
        x = input.transpose(0, 1) if self.batch_first else input
        y, states = self._run(x, hx, x.shape[1], None)
        return (y.transpose(0, 1) if self.batch_first and y is not None else y), states

    def _forward_packed(self, packed: PackedSequence, hx: Any) -> Any:
        x, batch_sizes, order, inverse = packed
        sizes = batch_sizes.tolist()
        if hx is not None and order is not None:
            hx = _each(hx, lambda state: state.index_select(1, order))
        y, states = self._run(x, hx, sizes[0], sizes)
        if inverse is not None:
            states = _each(states, lambda state: state.index_select(1, inverse))
        return (None if y is None else PackedSequence(y, batch_sizes, order, inverse)), states

    def _run(self, x: Tensor, hx: Any, batch: int, batch_sizes: list[int] | None) -> Any:
        self._update_flat_weights()
        cell = _CELLS[self.mode]
        if hx is None:
            directions = 2 if self.bidirectional else 1
            zeros = x.new_zeros(self.num_layers * directions, batch, self.hidden_size)
            hx = (zeros, zeros) if cell == "lstm" else zeros
        return functional.recurrent(
            x,
            hx,
            self._flat_weights,  # type: ignore[arg-type]
            cell,
            self.sketch,
            self.bits,
            num_layers=self.num_layers,
            bias=self.bias,
            dropout=self.dropout,
            bidirectional=self.bidirectional,
            batch_sizes=batch_sizes,
            return_sequence=self.return_sequence,
        )

    def extra_repr(self) -> str:
        sequence = "" if self.return_sequence else ", return_sequence=False"
        return f"{super().extra_repr()}, sketch={self.sketch}, bits={self.bits}{sequence}"


def _each(states: Any, change: Any) -> Any:
    return tuple(change(s) for s in states) if isinstance(states, (tuple, list)) else change(states)


class RNN(_Recurrent, torch.nn.RNN):
    """``torch.nn.RNN`` that keeps a sketch of its inputs and hidden states (``functional.recurrent``).

    With relu the derivative costs one exact bit an element; with tanh it is kept in ``bits``. Outputs are
    torch's to rounding, gradients unbiased; ``eval()`` is torch's own layer. Parameters, state_dict keys and
    initialisation are those of torch.nn.RNN. Packed sequences, unbatched input and all of torch's options
    work.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device,
            dtype: as torch.nn.RNN.
        sketch: what is kept of inputs and hidden states in training; may be changed at any time.
        bits: of the codes of derivatives: 8, 4, 2, 1 or None for none.
        return_sequence: False returns None in place of the outputs of all steps, which are then not even
            allocated: only the final states are of use.

    Raises:
        TypeError: sketch is not a Sketch, or bits no integer.
        ValueError: bits is unknown, or an argument is one that torch.nn.RNN refuses.
    """


class LSTM(_Recurrent, torch.nn.LSTM):
    """``torch.nn.LSTM`` that keeps a sketch of its inputs and hidden states, and the derivatives of its gates
    as codes: six bytes an element and step with 8 bits. See ``RNN`` for everything else.

    Raises:
        TypeError, ValueError: as ``RNN``; also for proj_size, which is not supported.
    """


class GRU(_Recurrent, torch.nn.GRU):
    """``torch.nn.GRU`` that keeps a sketch of its inputs and hidden states, and the derivatives of its gates
    as codes: five bytes an element and step with 8 bits. See ``RNN`` for everything else.

    Raises:
        TypeError, ValueError: as ``RNN``.
    """
