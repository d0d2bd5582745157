"""The paper's table 1: measured bytes against formula and paper, and the command that prints it."""

import json

import pytest

from rad_kernels import Sketch
from rad_kernels.__main__ import main
from rad_kernels.networks import NETWORKS, mask_bytes, weight_bytes
from rad_kernels.reproduce import table1
from rad_kernels.reproduce.table1 import BATCH, FRACTIONS, PAPER, measure

# MB of the ConvNet with one bit for every element that its ReLUs see, before pooling: the paper's own sum
# with 65,536 bits an image instead of 34,816.
TRUE_MASKS = {0.8: 19.76, 0.5: 12.94, 0.3: 8.39, 0.1: 3.85, 0.05: 2.71}


def test_the_papers_sums():
    """Each figure of the paper from its own counting, rounded up or down."""
    inputs = {"ConvNet": 3 * 32**2 + 16 * 32**2 + 2 * 32 * 16**2 + 2048, "FC": 784 + 3 * 300}
    bits = {"ConvNet": 34_816, "FC": 900}
    for name, values in inputs.items():
        weights = weight_bytes(NETWORKS[name].make())
        for keep, paper in zip(FRACTIONS, PAPER[name]):
            masks = bits[name] * BATCH / 8 * (keep < 1)
            assert (4 * BATCH * keep * values + weights + masks) / 1e6 == pytest.approx(paper, abs=0.016)


@pytest.mark.parametrize("sampling", ["different", "rows"])
@pytest.mark.parametrize("keep", [0.8, 0.1, 0.05])
def test_the_fully_connected_network(sampling, keep):
    cell = measure(NETWORKS["FC"], Sketch(keep, sampling))
    assert cell.measured == cell.formula
    assert cell.mb <= cell.paper_mb


@pytest.mark.parametrize("keep", [0.5, 0.05])
def test_the_convnet(keep):
    cell = measure(NETWORKS["ConvNet"], Sketch(keep, "different"))
    assert cell.measured == cell.formula
    assert cell.mb == pytest.approx(TRUE_MASKS[keep], rel=0.01)
    coded = measure(NETWORKS["ConvNet"], Sketch(keep, "different", bits=4))
    assert coded.measured == coded.formula and coded.mb < coded.paper_mb


def test_formulas_at_every_fraction():
    """What is measured equals the formula, so the formula says the rest."""
    for keep, target in TRUE_MASKS.items():
        paper = dict(zip(FRACTIONS, PAPER["ConvNet"]))[keep]
        convolutions = NETWORKS["ConvNet"]
        for sampling in ("different", "rows", "same"):
            assert convolutions.formula(Sketch(keep, sampling), BATCH) / 1e6 == pytest.approx(
                target, rel=0.01
            )
        assert convolutions.formula(Sketch(keep, "different", bits=4), BATCH) / 1e6 < paper
        for name in ("FC", "RNN"):
            limit = dict(zip(FRACTIONS, PAPER[name]))[keep]
            assert NETWORKS[name].formula(Sketch(keep, "different"), BATCH) / 1e6 <= limit


def test_the_recurrent_network():
    """A tenth of the batch: the formula is checked there, and says what the whole batch keeps."""
    for sketch in (Sketch(0.1, "different"), Sketch(0.3, "rows", bits=4)):
        cell = measure(NETWORKS["RNN"], sketch, batch=15)
        assert cell.measured == cell.formula


def test_masks_are_whole_words():
    assert [mask_bytes(n) for n in (1, 32, 33, 65_536)] == [4, 4, 8, 8192]


def test_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(table1, "NETWORKS", {"FC": NETWORKS["FC"]})
    record = tmp_path / "table1.json"
    assert main(["reproduce", "table1", "--sampling", "rows", "--json", str(record)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["network,", "MB", "1", "0.8", "0.5", "0.3", "0.1", "0.05"]
    assert lines[1].split()[-6:] == ["2.69", "2.51", "2.21", "2.00", "1.80", "1.75"]
    assert lines[2].split()[:2] == ["FC,", "measured"] and len(lines) == 3
    content = json.loads(record.read_text())
    assert [cell["keep"] for cell in content["cells"]] == list(FRACTIONS) and content["sampling"] == "rows"
    assert table1.table(content)[2][0] == "FC, measured"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: figure"),
        (["table1", "--batch", "0"], "batch must be at least 1, got 0"),
        (["table1", "--sampling", "project"], "invalid choice: 'project'"),
        (["table1", "--json", "nowhere/t.json"], "no such folder: nowhere"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
