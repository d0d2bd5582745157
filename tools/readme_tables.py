"""Fills the generated parts of README.md and docs/*.md from docs/results/*.json.

    python tools/readme_tables.py           rewrite what is out of date
    python tools/readme_tables.py --check   change nothing, exit with 1 if something is out of date

A generated part stands between <!-- KIND:NAME --> and <!-- end -->, made from docs/results/NAME.json. KIND is
table, notes or comparisons of a file of the demo, table1 of one by `reproduce table1 --json`, curves or
findings of one by `reproduce fc`, `cnn` or `rnn`, fair or fairnotes of one by `reproduce fair`, retained or
layers of one by examples/retained_bytes.py, profile of one by `profile --json`, cost of one by
examples/profile_cost.py, pde or graph of one by those of `reproduce`, plan or budget of one by
examples/budget.py, or resources of one by `make resources`. <!-- goals:NAME --> is made from
the newest benchmarks/results/*-NAME.json, and stands empty without one; <!-- slots:NAME --> from
tools/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import kernel_table  # noqa: E402
import sass_budget  # noqa: E402

from rad_kernels.bench import goals  # noqa: E402
from rad_kernels.bench.result import Report  # noqa: E402
from rad_kernels.demo.table import COLUMNS, comparisons, notes, table_cells  # noqa: E402
from rad_kernels.profile import Profile  # noqa: E402
from rad_kernels.reproduce import findings, graph, pde, table1  # noqa: E402
from rad_kernels.reproduce.fair import table as fair  # noqa: E402

GENERATED = re.compile(r"(<!-- (\w+):([\w-]+) -->\n).*?(<!-- end -->)", flags=re.S)


def markdown_table(content: dict[str, Any]) -> str:
    """The demo's table, and under it where and when it was measured."""
    alignment = ["---", *["--:"] * (len(COLUMNS) - 1)]
    lines = [" | ".join(cells) for cells in (COLUMNS, alignment, *table_cells(content))]
    where = content["environment"]
    measured = (
        f"Measured on {where['date']}: torch {where['torch']}, {where['machine']} with "
        f"{where['cpu_capability']}, {where['threads']} CPU thread{'s' if where['threads'] > 1 else ''}, "
        f"rad_kernels {where['rad_kernels']}."
    )
    return "\n".join(f"| {line} |" for line in lines) + f"\n\n{measured}\n"


def ruled_table(lines: list[tuple[str, ...]]) -> str:
    """A table whose first column is text."""
    header, *body = lines
    ruled = [header, ("---", *["--:"] * (len(header) - 1)), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled) + "\n"


def measured_table(lines: list[tuple[str, ...]], content: dict[str, Any]) -> str:
    """A table whose first column is text, and under it when it was measured."""
    where = content["environment"]
    return f"{ruled_table(lines)}\nMeasured on {where['date']} with torch {where['torch']}.\n"


def retained_lines(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Model, dtype and setting; bytes; how many times less than exact."""
    rows = [
        (f"{row['model']}, {row['dtype']}: {row['setting']}", f"{row['bytes']:,}", f"{row['times_less']:.2f}")
        for row in content["rows"]
    ]
    return [("a training step", "retained bytes", "times less"), *rows]


def cost_lines(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """A step, and what profiling it takes, in ms and in steps."""
    rows = content["rows"]
    header = ("a training step of", *(f"{task}, ms" for task in rows[0]["seconds"]), "profile, in steps")
    return [
        header,
        *(
            (
                row["step_of"],
                *(f"{1e3 * value:.0f}" for value in row["seconds"].values()),
                f"{row['seconds']['profile'] / row['seconds']['step']:.2f}",
            )
            for row in rows
        ),
    ]


def cost_note(content: dict[str, Any]) -> str:
    before, after = content["environment"]["load"]
    return (
        f"Processor time, median of {content['rounds']}, {content['environment']['threads']} CPU thread; "
        f"load of the machine {before:g} at the start, {after:g} at the end.\n"
    )


def load_of(content: dict[str, Any]) -> str:
    """How busy the machine was, which stretches the times."""
    before, after = content["environment"]["load"]
    settings = content["settings"]
    return (
        f"{content['title']} on {content['data']}: {settings['iterations']} updates, "
        f"batch {settings['batch']}, {settings['seeds']} seeds; "
        f"load of the machine {before:g} at the start, {after:g} at the end.\n"
    )


def layer_lines(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of a block of each network: what each layer retains as torch's and converted, in every dtype."""
    dtypes = [key for key in next(iter(content["layers"].values()))[0] if key not in ("layer", "was", "is")]
    sides = [f"{dtype}{side}" for dtype in dtypes for side in ("", ", converted")]
    lines: list[tuple[str, ...]] = [("layer", "converted to", *sides)]
    for model, layers in content["layers"].items():
        for row in layers:
            counts = (f"{count:,}" for dtype in dtypes for count in row[dtype])
            lines.append((f"{model.split(',')[0]}: `{row['layer']}`, {row['was']}", row["is"], *counts))
        sums = (sum(row[dtype][side] for row in layers) for dtype in dtypes for side in (0, 1))
        lines.append((f"{model.split(',')[0]}: together", "", *(f"{total:,}" for total in sums)))
    return lines


def markdown_list(sentences: list[str]) -> str:
    return "".join(f"- {sentence}\n" for sentence in sentences)


def goals_table(name: str, benchmarks: Path) -> str:
    """What the kernels are meant to reach on a GPU, and what the newest report says."""
    newest = max(benchmarks.glob(f"*-{name}.json"), default=None)
    report = Report.from_json(newest.read_text(encoding="utf-8")) if newest else None
    header, *body = goals.table(report)
    lines = [header, ("---", "---", "---", "--:", "--:"), *body]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if report is None:
        return f"{text}\n\nNo GPU has run these kernels yet.\n"
    where = report.environment
    return (
        f"{text}\n\nMeasured on {where['date']}: {where.get('device')}, torch {where['torch']}, CUDA "
        f"{where.get('cuda')}, rad_kernels {where['rad_kernels']}.\n"
    )


def resources_table(content: dict[str, Any]) -> str:
    return f"{ruled_table(kernel_table.table_lines(content))}\nReported by ptxas of nvcc {content['nvcc']}.\n"


def slots_table(rows: list[dict[str, Any]]) -> str:
    """What an element costs in the hot loop, and what memory allows in the time of its bytes."""
    header = ("file: kernel", "bytes", "slots", "slots that memory allows", "bound by")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        allowed = row["bytes"] * sass_budget.SLOTS_PER_BYTE
        name = f"`{row['file']}: {row['kernel'].replace('__nv_bfloat16', 'bf16').replace('__half', 'fp16')}`"
        bound = "memory" if row["slots"] <= allowed else "instructions"
        lines.append((name, f"{row['bytes']:g}", f"{row['slots']:g}", f"{allowed:.1f}", bound))
    return ruled_table(lines)


def budget_lines(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Method; bytes; share of the exact bytes; final loss with its standard deviation over seeds."""
    whole = content["config"]["exact_bytes"]
    rows = [
        (
            name,
            f"{row['retained_bytes']:,}",
            f"{row['retained_bytes'] / whole:.1%}",
            f"{row['final']:.4f} ± {row['spread']:.4f}",
        )
        for name, row in content["rows"].items()
    ]
    return [("method", "retained bytes", "of exact", "training loss"), *rows]


def budget_table(content: dict[str, Any]) -> str:
    config = content["config"]
    return (
        measured_table(budget_lines(content), content)
        + f"{config['steps']} steps of {config['batch']} texts, {config['depth']} blocks of "
        + f"{config['width']}, {config['seeds']} seeds.\n"
    )


RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "table": markdown_table,
    "notes": lambda content: markdown_list(notes(content)),
    "comparisons": lambda content: markdown_list(comparisons(content)),
    "retained": lambda content: measured_table(retained_lines(content), content),
    "layers": lambda content: measured_table(layer_lines(content), content),
    "profile": lambda content: f"```\n{Profile.from_dict(content)}\n```\n",
    "cost": lambda content: measured_table(cost_lines(content), content) + cost_note(content),
    "pde": lambda content: measured_table(pde.table(content), content),
    "graph": lambda content: measured_table(graph.table(content), content),
    "plan": lambda content: f"```text\n{content['table']}\n```\n",
    "budget": budget_table,
    "resources": resources_table,
    "curves": lambda content: measured_table(findings.table(content), content) + load_of(content),
    "findings": lambda content: markdown_list(findings.sentences(content)),
    "table1": lambda content: measured_table(table1.table(content), content),
    "fair": lambda content: measured_table([fair.columns(content), *fair.cells(content)], content),
    "fairnotes": lambda content: markdown_list(fair.notes(content)),
}


def filled(page: str, results: Path, benchmarks: Path = ROOT / "benchmarks" / "results") -> str:
    """The page with every generated part made anew.

    Raises:
        FileNotFoundError: a part names a result that does not exist.
        ValueError: a part has no end, or its kind is unknown.
    """
    if len(re.findall(r"<!-- \w+:[\w-]+ -->", page)) != len(GENERATED.findall(page)):
        raise ValueError("a generated part has no <!-- end -->")

    def render(found: re.Match[str]) -> str:
        if found[2] == "goals":
            return found[1] + goals_table(found[3], benchmarks) + found[4]
        if found[2] == "slots":
            rows = json.loads((ROOT / "tools" / f"{found[3]}.json").read_text(encoding="utf-8"))
            return found[1] + slots_table(rows) + found[4]
        if found[2] not in RENDERERS:
            kinds = ", ".join((*RENDERERS, "goals", "slots"))
            raise ValueError(f"a generated part must be one of {kinds}, got {found[2]!r}")
        content = json.loads((results / f"{found[3]}.json").read_text(encoding="utf-8"))
        return found[1] + RENDERERS[found[2]](content) + found[4]

    return GENERATED.sub(render, page)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only tell whether something is out of date")
    check = parser.parse_args().check
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        page = path.read_text(encoding="utf-8")
        if (fresh := filled(page, ROOT / "docs" / "results")) != page:
            stale.append(path.relative_to(ROOT).as_posix())
            if not check:
                path.write_text(fresh, encoding="utf-8")
    print(f"{'out of date' if check else 'rewritten'}: {', '.join(stale) or 'nothing'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
