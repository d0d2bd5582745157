"""Normalisations as tests call them: ours and torch's side by side, and tensors to call them with."""

import torch
import torch.nn.functional as F

from rad_kernels import functional

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def randn(*shape, dtype=torch.float32, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def affine(n, dtype=torch.float32):
    return (randn(n, dtype=dtype, seed=4) + 2).requires_grad_(), randn(
        n, dtype=dtype, seed=5
    ).requires_grad_()


# name -> (ours(x, weight, bias, bits), torch's, parameters, shapes of x)
LAYERS = {
    "layer": (
        lambda x, w, b, bits: functional.layer_norm(x, x.shape[-1], w, b, bits=bits),
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        lambda x: x.shape[-1],
        [(3, 5, 70), (9, 130)],
    ),
    "rms": (
        lambda x, w, b, bits: functional.rms_norm(x, x.shape[-1], w, bits=bits),
        lambda x, w, b: F.rms_norm(x, x.shape[-1:], w),
        lambda x: x.shape[-1],
        [(4, 70), (2, 3, 300)],
    ),
    "group": (
        lambda x, w, b, bits: functional.group_norm(x, 3, w, b, bits=bits),
        lambda x, w, b: F.group_norm(x, 3, w, b),
        lambda x: x.shape[1],
        [(2, 6, 5, 7), (4, 9, 33), (3, 48)],
    ),
    "batch": (
        lambda x, w, b, bits: functional.batch_norm(x, None, None, w, b, bits=bits),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        lambda x: x.shape[1],
        [(4, 6, 5, 7), (33, 9), (5, 3, 40), (2, 3, 4, 5, 6)],
    ),
}
