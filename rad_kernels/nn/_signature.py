from __future__ import annotations

import inspect
from typing import Any

import torch


class LikeTorch(torch.nn.Module):
    """A layer whose constructor hands all but its own keywords on to the torch layer of its name: what help()
    and inspect show is torch's signature with these keywords behind."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        exact = getattr(torch.nn, cls.__name__, None)
        if exact is None or exact not in cls.__mro__:
            return
        own = inspect.signature(cls.__init__).parameters.values()
        added = [parameter for parameter in own if parameter.kind is parameter.KEYWORD_ONLY]
        known = list(inspect.signature(exact).parameters.values())
        rest = [known.pop()] if known[-1].kind is inspect.Parameter.VAR_KEYWORD else []
        cls.__signature__ = inspect.Signature([*known, *added, *rest])  # type: ignore[attr-defined]
