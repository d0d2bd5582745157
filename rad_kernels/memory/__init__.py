"""What a training step keeps for backward, and how high its memory rises.

report = saved_bytes(lambda: loss_function(model(x), y))
print(report)            # one line per saved storage: module, op, shape, dtype, bytes
report.total             # bytes
step_peak(step)          # highest number of bytes allocated above the level at entry
"""

from .saved import FUNCTIONAL, Found, Recorder, SavedBytes, SavedEntry, saved_bytes
from .timeline import Span, Timeline, step_peak, timeline

__all__ = [
    "FUNCTIONAL",
    "Found",
    "Recorder",
    "SavedBytes",
    "SavedEntry",
    "Span",
    "Timeline",
    "saved_bytes",
    "step_peak",
    "timeline",
]
