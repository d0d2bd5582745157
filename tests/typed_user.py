"""What a program that uses the package looks like to mypy --strict. Checked by `make lint`, never run."""

from typing import assert_type

import torch
from torch import Tensor, nn

import rad_kernels
from rad_kernels import Sketch, convert, functional, memory, restore
from rad_kernels import nn as rnn
from rad_kernels.convert import Report


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = rnn.Linear(8, 4, bias=False, sketch=Sketch(0.1, "rows", "stratified", bits=4))
        self.norm = rnn.LayerNorm(4, bits=4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.fc(x))
        return y


network = Network()
assert_type(convert(network, Sketch.parse("rows:0.1:4bit"), exclude="head", example_inputs=()), Network)
assert_type(convert(network, {nn.Linear: Sketch(0.1), "head": None}, dry_run=True), Report)
assert_type(restore(network), Network)
assert_type(network.fc.sketch, Sketch)
assert_type(network.fc.weight, Tensor)
assert_type(functional.linear(torch.ones(2, 8), network.fc.weight, None, Sketch(0.1)), Tensor)
assert_type(functional.gelu(torch.ones(2), bits=2), Tensor)
assert_type(memory.saved_bytes(lambda: network(torch.ones(2, 8))).total, int)
assert_type(rad_kernels.show_config(), str)
assert_type(rad_kernels.__version__, str)
