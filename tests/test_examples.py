"""The example models: they train, converted or not, keep what they should, and their commands work."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import same_bits

from rad_kernels import Sketch, convert, restore
from rad_kernels.memory import saved_bytes

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import gpt  # noqa: E402
import llama  # noqa: E402
import resnet  # noqa: E402
import retained_bytes  # noqa: E402
import vit  # noqa: E402

SMALL = ["--steps", "2", "--batch", "4", "--width", "16", "--depth", "1"]
COMMANDS = [
    (resnet, []),
    (vit, ["--recompute", "attention"]),
    (gpt, ["--recompute", "attention"]),
    (llama, []),
]
by_name = pytest.mark.parametrize(("example", "extra"), COMMANDS, ids=lambda e: getattr(e, "__name__", ""))


@by_name
def test_the_loss_is_the_same_and_less_is_kept(example, extra, capsys):
    exact = example.main(SMALL)
    converted = example.main([*SMALL, "--convert", "rows:0.25", *extra])
    assert converted[0] == exact[0] and all(np.isfinite(converted))
    first, second = [line for line in capsys.readouterr().out.splitlines() if "retained" in line]
    assert "(1.0 times less)" in first and float(second.split("(")[1].split()[0]) > 1.2


def test_training_makes_progress():
    torch.manual_seed(0)
    losses = gpt.main(
        ["--steps", "25", "--batch", "8", "--width", "32", "--convert", "rows:0.25", "--lr", "1e-2"]
    )
    assert np.mean(losses[-5:]) < losses[0] - 0.5


def test_given_data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("hello world, " * 20)
    gpt.main([*SMALL, "--data", str(path)])
    path.write_text("short")
    with pytest.raises(ValueError, match="must have more than 64 characters, got 5"):
        gpt.main([*SMALL, "--data", str(path)])
    images = {"images": np.zeros((6, 32, 32, 3), np.uint8), "labels": np.arange(6)}
    np.savez(tmp_path / "images.npz", **images)
    resnet.main([*SMALL, "--data", str(tmp_path / "images.npz")])


def test_help_and_wrong_arguments():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), *sys.path])}
    run = [sys.executable, str(EXAMPLES / "vit.py"), "--help"]
    shown = subprocess.run(run, capture_output=True, text=True, env=environment, check=True).stdout
    assert "--convert SKETCH" in shown and "vision transformer" in shown
    with pytest.raises(SystemExit):
        gpt.main(["--recompute", "attention"])


def test_packs_are_shared_and_attention_computed_again():
    x = torch.randint(65, (2, 64))
    net = llama.Llama(width=32, depth=2)
    expected = net(x)
    report = convert(net, Sketch(0.25), example_inputs=x, recompute="attention").rad_report
    mlp, attention = ("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj")
    assert report.shared == tuple(
        tuple(f"blocks.{i}.{part}.{name}" for name in names)
        for i in range(2)
        for part, names in (("attention", attention), ("mlp", mlp))
    )
    assert report.recomputed == ("blocks.0", "blocks.1")
    assert same_bits(net(x), expected)
    assert not [e for e in saved_bytes(lambda: net(x)).entries if "attention" in e.module]
    torch.manual_seed(3)
    net(x).square().sum().backward()
    recomputed = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    convert(restore(net), Sketch(0.25), example_inputs=x)
    torch.manual_seed(3)
    net(x).square().sum().backward()
    assert all(map(same_bits, recomputed, (p.grad for p in net.parameters())))


@pytest.mark.parametrize(
    ("network", "setting", "least"),
    [
        ("RESNET", "keep 0.1", 6.9),
        ("RESNET", "keep 0.1, norms in 3 bits", 7.8),
        ("RESNET", "keep 0.1, norms in 2 bits", 9.0),
        ("RESNET", "keep 0.1 in 4 bits, norms in 3", 11.5),
        ("GPT", "keep 0.1", 2.8),
        ("GPT", "keep 0.1, head and loss too", 2.9),
        ("GPT", "keep 0.1 in 4 bits, head and loss too", 3.3),
        ("GPT", "keep 0.1, attention again", 6.7),
        ("LLAMA", "keep 0.1", 3.6),
    ],
)
def test_how_much_less_is_kept(network, setting, least):
    model = getattr(retained_bytes, network)
    exact, _ = retained_bytes.measure(model, torch.float32, None)
    kept, _ = retained_bytes.measure(model, torch.float32, retained_bytes.SETTINGS[setting])
    assert exact / kept >= least
