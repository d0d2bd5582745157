"""Lightning: a callback that converts the module before it is trained."""

from __future__ import annotations

from typing import Any

try:
    import lightning.pytorch as pl
except ImportError as error:
    raise ImportError("rad_kernels.integrations.lightning needs lightning: pip install lightning") from error

from ..convert import convert, restore
from ..convert.choose import Sketches

__all__ = ["Convert"]


class Convert(pl.Callback):
    """``convert`` when fitting starts, ``restore`` when it ends.

    By then the module has its layers, those of ``configure_model`` too, and its optimizers, which go on
    working, as Parameters stay the same objects. ``trainer.lightning_module.rad_report`` has each layer.

    Args:
        sketch: as in ``convert``.
        attribute: name of the submodule to convert; "" is the whole LightningModule.
        restore: whether the module has torch's layers again after fitting.
        options: further keywords of ``convert``, such as ``example_inputs`` (of that submodule).

    Raises (when fitting starts):
        AttributeError: the module has no such attribute.
        TypeError, ValueError: as ``convert``.
    """

    def __init__(self, sketch: Sketches, attribute: str = "", restore: bool = True, **options: Any) -> None:
        self.sketch, self.attribute, self.restore, self.options = sketch, attribute, restore, options

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        convert(pl_module.get_submodule(self.attribute), self.sketch, **self.options)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.restore:
            restore(pl_module.get_submodule(self.attribute))
