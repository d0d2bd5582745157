"""Two processes with gloo: independent samples from one seed, DDP, FSDP2, accumulation, resuming."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
# The largest error of gradients or parameters, relative to those of plain models whose gradients are averaged
# by hand: sums over ranks in another order, rounding to bfloat16, nothing at all.
ERRORS = {"ddp accumulates": 1e-6, "fsdp2": 1e-6, "fsdp2 in bfloat16": 0.03, "resumes": 0.0}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    folder = tmp_path_factory.mktemp("ranks")
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    done = subprocess.run(
        [sys.executable, HERE / "eco_ranks.py", folder],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_samples_of_one_seed_are_independent_and_can_be_shared(ranks):
    assert [rank["salt"] for rank in ranks] == [0, 1]
    assert ranks[0]["own"] != ranks[1]["own"]
    assert ranks[0]["shared"] == ranks[1]["shared"]


@pytest.mark.parametrize("what", ERRORS)
def test_training_together(ranks, what):
    assert max(rank[what] for rank in ranks) <= ERRORS[what]
