"""Everything that needs a GPU in one go: build, tests, sanitizers, memory and benchmarks, each with its own
time limit and log, so that one failure does not stop the rest.

    python benchmarks/gpu_report.py --out DIR            on a machine with an installed CUDA torch and toolkit
    python benchmarks/gpu_report.py --out DIR --dry-run  anywhere: build what can be built, list the rest

Nothing is installed or downloaded. DIR then has report.md and .json, bench.json, two pictures, logs.tar.gz.
Exit code 0: all stages passed; 1: some did not; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOTAL_SECONDS = 470  # of all stages; what is left is for writing the report
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
CANNOT = 2


@dataclass(frozen=True)
class Stage:
    """A command with its limit in seconds; stages of one ``group`` run at the same time."""

    name: str
    command: tuple[str, ...]
    seconds: int
    group: str
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.command)])


@dataclass(frozen=True)
class Outcome:
    """result: passed, failed, out of time, or not run; last: the last line that the stage printed."""

    name: str
    result: str
    seconds: float
    last: str
    command: str


def stages(out: Path, python: str = sys.executable, cores: int | None = None) -> list[Stage]:
    """What a report consists of, in order. Timings stand last and alone."""
    cores = cores or os.cpu_count() or 1
    checks = (python, "benchmarks/gpu_checks.py")
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    spread = ("-n", str(max(1, min(cores - 2, 12))))
    on_gpu = ("tests/test_gpu.py", "tests/test_gpu_layers.py")
    one_thread = {"OMP_NUM_THREADS": "1"}
    build = {
        "RAD_KERNELS_WITH_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": "9.0a",
        "MAX_JOBS": str(max(1, cores // 2)),
    }
    # Without torch's cache each tensor is an allocation, so that reading past its end is seen.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Stage("build", (python, "setup.py", "build_ext", "--inplace"), 150, "build", build),
        Stage("facts", (*checks, "facts"), 40, "facts"),
        Stage(
            "gpu tests", (*pytest, *spread, *on_gpu, "-k", "not (replay or graph)"), 100, "gpu", one_thread
        ),
        Stage("graph replay", (*pytest, *on_gpu, "-k", "replay or graph"), 40, "replay"),
        *(
            Stage(tool, (*sanitizer(tool), *checks, "kernels"), 100, "sanitizers", uncached)
            for tool in SANITIZERS
        ),
        Stage("memory", (*checks, "memory"), 40, "memory"),
        *benchmarks(out, python),
        Stage("large tensors", (*pytest, "tests/test_gpu_large.py"), 90, "large"),
        Stage("suite", (*pytest, *spread, "-m", "not gpu"), 150, "suite", one_thread),
    ]


# Suites and sketches of the benchmarks; the goals of rad_kernels/bench/goals.py are among them.
ROWS = "rows:0.05,rows:0.1,rows:0.25,rows:0.5"
BENCHMARKS = {
    "products": ("linear", f"{ROWS},tile_rows:0.1,different:0.1,rows:1:4bit"),
    "gradients": (
        "wgrad",
        f"{ROWS},tile_rows:0.1,different:0.1,different:0.25,different:0.5,rows:0.1:4bit,rows:1:4bit",
    ),
    "memory": ("pack,elementwise", "rows:0.1,tile_rows:0.1,same:0.1,different:0.1,rows:0.1:4bit,rows:1:4bit"),
    "convolutions": ("conv,conv_wgrad", "rows:0.1,rows:0.25,same:0.1,different:0.1"),
    "models": ("model", "rows:0.1"),
}
BENCH_SECONDS = {"products": 60, "gradients": 80, "memory": 40, "convolutions": 40, "models": 110}


def benchmarks(out: Path, python: str) -> list[Stage]:
    """One after the other. Only weight gradients and whole models have peers: compiling for each small
    case would take longest."""
    bench = (
        python,
        "-m",
        "rad_kernels",
        "bench",
        "--device",
        "cuda",
        "--dtype",
        "bfloat16",
        "--seconds",
        "1",
    )
    planned = []
    for name, (suites, sketches) in BENCHMARKS.items():
        files = ("--json", str(out / f"bench-{name}.json"))
        peers = ("--peers",) if name in ("gradients", "models") else ()
        command = (*bench, "--suite", suites, "--sketches", sketches, *peers, *files)
        planned.append(Stage(f"bench {name}", command, BENCH_SECONDS[name], f"bench {name}"))
    return planned


def chosen(planned: Sequence[Stage], only: str | None) -> list[Stage]:
    """The build and the stages that begin with a name of the list; ValueError if one begins none."""
    if only is None:
        return list(planned)
    names = [name.strip() for name in only.split(",")]
    for name in names:
        if not name or not any(stage.name.startswith(name) for stage in planned):
            raise ValueError(f"--only must name stages of {', '.join(s.name for s in planned)}; got {name!r}")
    return [stage for stage in planned if stage.name.startswith(("build", *names))]


def sanitizer(tool: str) -> tuple[str, ...]:
    """Our kernels only, whose mangled names hold "3rad"; initcheck has to see who else writes."""
    only_ours = () if tool == "initcheck" else ("--kernel-regex", "kns=3rad")
    return ("compute-sanitizer", f"--tool={tool}", "--error-exitcode=9", *only_ours)


def cross_build(target: Path, cores: int | None = None) -> Stage:
    """The CUDA backend compiled where there is no GPU and torch may be CPU-only."""
    environment = {
        "RAD_KERNELS_WITH_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": "9.0a",
        "MAX_JOBS": str(max(1, (cores or os.cpu_count() or 1) // 2)),
    }
    command = (sys.executable, "setup.py", "build", "--build-lib", str(target))
    return Stage("cross build", command, 900, "build", environment)


def run_stage(stage: Stage, log: Path, limit: float) -> Outcome:
    """Runs it with its output in ``log``; past the limit its whole process group is ended."""
    start = time.monotonic()

    def outcome(result: str) -> Outcome:
        return Outcome(stage.name, result, round(time.monotonic() - start, 1), last_line(log), str(stage))

    with log.open("w", encoding="utf-8") as output:
        output.write(f"$ {stage}\n\n")
        output.flush()
        if limit < 1:
            return Outcome(stage.name, "not run", 0.0, "no time was left", str(stage))
        try:
            process = subprocess.Popen(
                stage.command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except FileNotFoundError:
            return Outcome(stage.name, "not run", 0.0, f"{stage.command[0]} is not installed", str(stage))
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return outcome("out of time")
    return outcome("passed" if code == 0 else f"failed ({code})")


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]]
    return next((line for line in reversed(lines) if line), "")[:200]


def run_all(
    planned: Sequence[Stage], logs: Path, total: float = TOTAL_SECONDS, tell: Callable[[str], None] = print
) -> list[Outcome]:
    """All stages in order, those of one group at the same time, none beyond ``total`` seconds."""
    end = time.monotonic() + total
    outcomes: list[Outcome] = []
    for group in dict.fromkeys(stage.group for stage in planned):
        members = [stage for stage in planned if stage.group == group]

        def run(stage: Stage) -> Outcome:
            log = logs / f"{stage.name.replace(' ', '_')}.log"
            return run_stage(stage, log, min(stage.seconds, end - time.monotonic()))

        with ThreadPoolExecutor(len(members)) as pool:
            for outcome in pool.map(run, members):
                tell(f"{outcome.name:14} {outcome.result:12} {outcome.seconds:6.1f} s  {outcome.last}")
                outcomes.append(outcome)
    return outcomes


def write_report(out: Path, logs: Path, outcomes: Sequence[Outcome]) -> None:
    """report.md, report.json and logs.tar.gz in ``out``."""
    date = datetime.now(UTC).date().isoformat()
    memory = json_part(logs / "memory.log")
    content = {"date": date, "stages": [asdict(outcome) for outcome in outcomes], "memory": memory}
    (out / "report.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# GPU report, {date}",
        "",
        "| stage | result | seconds | last line |",
        "| --- | --- | --: | --- |",
    ]
    for outcome in outcomes:
        last = outcome.last.replace("|", "/")
        lines.append(f"| {outcome.name} | {outcome.result} | {outcome.seconds:.1f} | {last} |")
    if (facts := logs / "facts.log").exists():
        lines += ["", "```", *facts.read_text(encoding="utf-8").splitlines()[2:], "```"]
    if memory:
        lines += ["", "## Memory of a Linear, bytes (torch's allocator)", ""]
        lines += ["| sketch | held for backward | formula | step peak |", "| --- | --: | --: | --: |"]
        lines += [f"| {r['sketch']} | {r['held']:,} | {r['formula']:,} | {r['peak']:,} |" for r in memory]
    for bench in sorted(logs.glob("bench_*.log")):
        text = bench.read_text(encoding="utf-8", errors="replace").splitlines()[2:]
        lines += ["", f"## Benchmarks: {bench.stem.removeprefix('bench_')}", "", "```", *text, "```"]
    join_benchmarks(out)
    (out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with tarfile.open(out / "logs.tar.gz", "w:gz") as archive:
        for log in sorted(logs.iterdir()):
            archive.add(log, log.name)


def join_benchmarks(out: Path) -> None:
    """bench.json with the rows of all bench-*.json, which go, and its two pictures."""
    parts = sorted(out.glob("bench-*.json"))
    if not parts:
        return
    sys.path.insert(0, str(ROOT))
    from rad_kernels.bench import plot, roofline
    from rad_kernels.bench.result import Report

    reports = [Report.from_json(part.read_text(encoding="utf-8")) for part in parts]
    joined = replace(reports[-1], rows=tuple(row for report in reports for row in report.rows))
    (out / "bench.json").write_text(joined.to_json(), encoding="utf-8")
    plot.draw(joined, out / "bench.png")
    roofline.draw(joined, out / "roofline.png")
    for part in parts:
        part.unlink()


def json_part(log: Path) -> list[dict[str, Any]]:
    """The JSON list that a stage printed among other lines; empty if there is none."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    begin, end = text.find("\n[\n"), text.rfind("\n]")
    try:
        return json.loads(text[begin : end + 2]) if 0 <= begin < end else []
    except json.JSONDecodeError:
        return []


def gpu_name() -> str | None:
    """The first CUDA device of this interpreter's torch."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def dry_run(planned: Sequence[Stage], logs: Path, build: bool) -> int:
    """Builds for sm_90a where there is a compiler, and lists the stages."""
    code = 0
    if not build:
        print("cross build    left out, as asked")
    elif shutil.which("nvcc") is None and not Path("/usr/local/cuda/bin/nvcc").exists():
        print("cross build    left out: there is no nvcc here")
    else:
        outcomes = run_all([cross_build(logs / "lib")], logs, total=900)
        code = 0 if outcomes[0].result == "passed" else 1
        if code:
            print((logs / "cross_build.log").read_text(encoding="utf-8", errors="replace")[-3000:])
    for stage in planned:
        print(f"{stage.name:18} up to {stage.seconds:3} s  {stage}")
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build, test, sanitize and time on a GPU; one report.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-report", metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="build what can be built here, list the rest")
    parser.add_argument(
        "--only", metavar="LIST", help="stages whose names begin with one of these; after the build"
    )
    parser.add_argument("--no-build", action="store_true", help="with --dry-run: only list")
    args = parser.parse_args(arguments)
    out = args.out.resolve()
    try:
        planned = chosen(stages(out), args.only)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as directory:
        logs = Path(directory)
        if args.dry_run:
            return dry_run(planned, logs, not args.no_build)
        name = gpu_name()
        if name is None:
            print(
                "gpu_report: torch sees no CUDA device; --dry-run shows what would be done", file=sys.stderr
            )
            return CANNOT
        print(name)
        out.mkdir(parents=True, exist_ok=True)
        outcomes = run_all(planned, logs)
        write_report(out, logs, outcomes)
    print(f"written: {out / 'report.md'}")
    return 0 if all(outcome.result == "passed" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
