"""Runs trials: time, retained bytes and peak of every subject, as rows."""

from __future__ import annotations

import torch

from ..memory import saved_bytes, step_peak
from .limits import Limits
from .result import Row
from .timing import (
    Clock,
    CudaClock,
    CudaHostClock,
    Rounds,
    Timing,
    cpu_clock,
    interleaved,
    summarise,
    wall_clock,
)
from .trial import Setting, Subject, Trial

CLOCKS = ("wall", "cpu")


def clock_for(device: torch.device, name: str, host_time: bool = False) -> Clock:
    if device.type == "cuda":
        return CudaHostClock(device) if host_time else CudaClock(device)
    return cpu_clock if name == "cpu" else wall_clock


def measured(
    trial: Trial, setting: Setting, clock: Clock, rounds: Rounds, limits: Limits | None
) -> list[Row]:
    """A row a subject; without ``limits``, none is distant from them."""
    steps = {name: subject.step for name, subject in trial.subjects.items()}
    timings = summarise(interleaved(steps, clock, rounds))
    baseline = next(iter(trial.subjects.values()))
    return [
        _row(trial, name, setting, timings[name], baseline, limits if not trial.host_time else None)
        for name in trial.subjects
    ]


def _row(
    trial: Trial, name: str, setting: Setting, timing: Timing, baseline: Subject, limits: Limits | None
) -> Row:
    subject = trial.subjects[name]
    floor = to_limit = None
    if limits and subject.work:
        to_limit = timing.median / limits.seconds(subject.work)
        if baseline.work:
            floor = limits.seconds(subject.work) / limits.seconds(baseline.work)
    subject.step.prepare()
    peak = step_peak(subject.step.run, setting.device)
    subject.step.prepare()
    return Row(
        trial.suite,
        trial.case,
        name,
        str(setting.dtype).removeprefix("torch."),
        timing.median,
        timing.p20,
        timing.p80,
        timing.minimum,
        timing.rounds,
        timing.ratio,
        timing.ratio_minimum,
        floor,
        to_limit,
        saved_bytes(subject.forward).total if subject.forward else None,
        peak,
        flops=subject.work.flops if subject.work else None,
        moved=subject.work.bytes if subject.work else None,
    )
