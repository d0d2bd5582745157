"""The table of a profile: columns for a terminal, and the same as plain text."""

from __future__ import annotations

from .result import LayerMemory, Profile

RIGHT = ("calls", "parameters", "retained", "alone", "predicted", "forward +", "backward +")
LEGEND = (
    "retained: saved for backward, by whoever saved it first; alone: what nobody else holds; "
    "forward +, backward +: rise of the memory in a call, or in one operation of backward."
)


def columns(profile: Profile) -> tuple[str, ...]:
    found = ["module", "type", "calls", "parameters", "retained", "alone"]
    if profile.prediction is not None:
        found += ["predicted", "under the sketch"]
    if profile.ran:
        found += ["forward +", "backward +"]
    return (*found, "also held by")


def rows(profile: Profile) -> list[tuple[str, ...]]:
    """One tuple of strings a module, in the order of ``columns``, and the sums."""
    also = _also_held(profile)
    cells: list[tuple[str, ...]] = []
    marks = {layer.name: f" [{i}]" for i, layer in enumerate(_noted(profile), 1)}
    for layer in profile.layers:
        row = [layer.name, layer.type, *map(_count, (layer.calls, layer.parameters))]
        row += map(_count, (layer.retained, layer.alone))
        if profile.prediction is not None:
            row += [_count(layer.predicted) + marks.get(layer.name, ""), layer.became or layer.reason]
        if profile.ran:
            row += [_count(layer.forward_peak), _count(layer.backward_peak)]
        cells.append((*row, also.get(layer.name, "")))
    alone = sum(layer.alone for layer in profile.layers)
    last = ["whole step", "", "", *map(_count, (profile.parameters, profile.retained, alone))]
    if profile.prediction is not None:
        last += [_count(profile.predicted), ""]
    if profile.ran:
        last += ["", ""]
    return [*cells, (*last, "")]


def _noted(profile: Profile) -> list[LayerMemory]:
    return [layer for layer in profile.layers if layer.note]


def _count(value: int | None) -> str:
    return f"{value:,}" if value else ""


def _also_held(profile: Profile) -> dict[str, str]:
    """Module -> the others that hold what it saved first."""
    also: dict[str, dict[str, None]] = {}
    for tensor in profile.tensors:
        if not tensor.owner:
            others = [*sorted(tensor.modules - {tensor.module}), *filter(None, (tensor.held_by,))]
            also.setdefault(tensor.module, {}).update(dict.fromkeys(others))
    return {name: _shortened(list(others)) for name, others in also.items()}


def _shortened(names: list[str], shown: int = 3) -> str:
    return ", ".join(names) if len(names) <= shown else f"{', '.join(names[:shown])} and {len(names) - shown}"


def sums(profile: Profile) -> list[tuple[str, str, str]]:
    """(what, bytes, remark) of the whole step."""
    held = f"of which {profile.held:,} are held anyway" if profile.held else ""
    found = [("parameters", profile.parameters, ""), ("buffers", profile.buffers, "")]
    found += [("gradients", profile.gradients, "part of the backward peak")]
    if profile.optimizer is not None:
        found.append(("optimizer state", profile.optimizer, ""))
    found += [("retained for backward", profile.retained, held)]
    if profile.prediction is not None and profile.predicted is not None:
        times = f"{profile.retained / profile.predicted:.2f} times less" if profile.predicted else ""
        found.append((f"under {profile.sketch}", profile.predicted, times))
    if profile.device.startswith("cuda") or not profile.ran:
        found.append(("retained, on CUDA", profile.rounded, "in the allocator's blocks of 512"))
    found += [("peak of forward", profile.forward_peak, "above the start of the step")]
    found += [("peak of backward", profile.backward_peak, "above the start of the step")]
    if profile.prediction is not None and profile.prediction.peak is not None:
        found.append((f"peak under {profile.sketch}", profile.prediction.peak, "of tensors, without running"))
    found += [("needed in all", profile.needed, "parameters, buffers, optimizer state and the peak")]
    return [(what, f"{count:,}", remark) for what, count, remark in found]


def notes(profile: Profile) -> list[str]:
    how = "measured" if profile.ran else "found without running"
    marked = [f"[{i}] {layer.name}: {layer.note}" for i, layer in enumerate(_noted(profile), 1)]
    return [f"{profile.model} on {profile.device}, one step, {how}. Bytes. {LEGEND}", *marked, *profile.notes]


def text(profile: Profile) -> str:
    names = columns(profile)
    table = [names, *rows(profile)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if name in RIGHT else cell.ljust(width)
            for name, cell, width in zip(names, row, widths)
        ).rstrip()
        for row in table
    ]
    whole = sums(profile)
    wide, deep = max(len(what) for what, _, _ in whole), max(len(count) for _, count, _ in whole)
    lines += ["", *(f"{w.ljust(wide)}  {c.rjust(deep)}  {remark}".rstrip() for w, c, remark in whole)]
    return "\n".join([*lines, "", *notes(profile)])
