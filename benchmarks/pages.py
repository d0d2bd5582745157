"""Fills the generated table of docs/frontier.md from docs/results/frontier.json.

python -m rad_kernels bench --suite variance --threads 1 --data DIR \\
    --json docs/results/frontier.json --plot docs/results/frontier.png
python benchmarks/pages.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rad_kernels.bench.result import Report  # noqa: E402

BEGIN, END = "<!-- frontier, generated -->\n", "<!-- frontier, end -->"


def table(report: Report) -> str:
    """Every sketch by rising bytes a value, and when and how it was measured."""
    columns = (
        "sketch",
        "bytes a value",
        "of float32",
        "variance, by formula",
        "measured",
        "of the minibatch's",
    )
    lines = [columns, ("---", *["--:"] * 5)]
    noise = report.settings["minibatch_noise"]
    for row in sorted(report.variances, key=lambda row: row.bytes_per_value):
        share = f"{100 * row.bytes_per_value / 4:.2g} %"
        formula = "" if row.formula is None else f"{row.formula:.3g}"
        against = f"{row.measured / noise:.2g}"
        cells = (
            f"`{row.sketch}`",
            f"{row.bytes_per_value:.3g}",
            share,
            formula,
            f"{row.measured:.3g}",
            against,
        )
        lines.append(cells)
    where, how = report.environment, report.settings
    measured = (
        f"Measured on {where['date']} with torch {where['torch']}, rad_kernels {where['rad_kernels']}: "
        f"network {how['network']} on {how['data']}, {how['training_steps']} steps of Adam, then one "
        f"minibatch of {how['batch']} images; mean of {how['samples_a_sketch']} samples a sketch. The "
        f"minibatch's own noise is {noise:.3g}."
    )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + f"\n{measured}\n"


def filled(page: str, report: Report) -> str:
    """The page with its generated part made anew; ValueError if it has none."""
    part = re.compile(f"({re.escape(BEGIN)}).*?({re.escape(END)})", flags=re.S)
    if not part.search(page):
        raise ValueError(f"the page has no part between {BEGIN.strip()} and {END}")
    return part.sub(lambda found: found[1] + table(report) + found[2], page)


def main() -> int:
    path = ROOT / "docs" / "frontier.md"
    report = Report.from_json((ROOT / "docs" / "results" / "frontier.json").read_text(encoding="utf-8"))
    path.write_text(filled(path.read_text(encoding="utf-8"), report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
