"""The torch ops: thin wrappers, shape rules (fakes), and the rank salt. Only this folder names them.

``spec`` is always ``Sketch.spec``. A ``key`` (int64, one element, the tensor's device) fixes what is drawn;
None draws it from torch's generator.
"""

from .conv import conv, conv_wgrad, packed_shape, shape_read
from .elementwise import (
    FUNCTIONS,
    activation,
    derivative_nbytes,
    derivative_product,
    dropout,
    dropout_backward,
    kink,
    masked,
    relu,
    relu_,
    sloped,
)
from .gated import GATES, gated, gated_nbytes, gated_product
from .linear import draw_key, linear, linear_shared, linear_wgrad, pack, rows_wgrad, unpack
from .linear_loss import linear_cross_entropy, linear_cross_entropy_backward
from .loss import along_classes, class_loss, cross_entropy_backward, log_softmax, probability_nbytes
from .norm import (
    NormShape,
    batch_norm,
    group_norm,
    layer_norm,
    norm_backward,
    norm_saved_nbytes,
    rms_norm,
    statistics_dtype,
)
from .pde import reaction_diffusion, reaction_diffusion_backward, states_nbytes
from .pool import max_pool, max_pool_backward, pool_code_words
from .prelu import prelu
from .rnn import draw_keys, rnn, rnn_backward, rnn_packs_nbytes, rnn_saved_nbytes
from .salt import rank_salt

__all__ = [
    "FUNCTIONS",
    "GATES",
    "NormShape",
    "activation",
    "along_classes",
    "batch_norm",
    "class_loss",
    "conv",
    "conv_wgrad",
    "cross_entropy_backward",
    "derivative_nbytes",
    "derivative_product",
    "draw_key",
    "draw_keys",
    "dropout",
    "dropout_backward",
    "gated",
    "gated_nbytes",
    "gated_product",
    "group_norm",
    "kink",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "linear_shared",
    "linear_wgrad",
    "log_softmax",
    "masked",
    "max_pool",
    "max_pool_backward",
    "norm_backward",
    "norm_saved_nbytes",
    "pack",
    "packed_shape",
    "pool_code_words",
    "prelu",
    "probability_nbytes",
    "rank_salt",
    "reaction_diffusion",
    "reaction_diffusion_backward",
    "relu",
    "relu_",
    "rms_norm",
    "rnn",
    "rnn_backward",
    "rnn_packs_nbytes",
    "rnn_saved_nbytes",
    "rows_wgrad",
    "shape_read",
    "sloped",
    "states_nbytes",
    "statistics_dtype",
    "unpack",
]
