"""tools/sass_budget.py: loops found in machine code, their cost, and what fails."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import sass_budget

# A loop over vectors (0x20-0x60) inside a loop over rows (0x10-0x80), a path of diverged warps behind the end
# that jumps back into it, and the jump to itself with which kernels end.
SASS = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   IMAD R1, R0, 0x4, RZ ;
        /*0020*/                   LDG.E.128 R4, desc[UR6][R2.64] ;
        /*0030*/                   BRA.DIV UR4, 0xa0 ;
        /*0040*/                   LOP3.LUT R4, R4, R5, RZ, 0x3c, !PT ;
        /*0050*/                   STG.E.128 desc[UR6][R2.64], R4 ;
        /*0060*/              @!P0 BRA 0x20 ;
        /*0070*/                   MUFU.RCP R1, R1 ;
        /*0080*/               @P1 BRA 0x10 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   WARPSYNC R9 ;
        /*00b0*/                   BRA 0x40 ;
        /*00c0*/                   BRA 0xc0;
"""


def parsed(text=SASS):
    return [
        (int(at, 16), predicate, code, operands)
        for at, predicate, code, operands in sass_budget.INSTRUCTION.findall(text)
    ]


def test_the_innermost_loop_is_the_hot_one():
    lines = parsed()
    assert [line[2] for line in lines][:3] == ["S2R", "IMAD", "LDG.E.128"]
    loops = sass_budget.natural_loops(lines)
    assert sorted(map(sorted, loops)) == [[1, 2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6]]
    loop = sass_budget.hot_loop(lines, "STG.E.128")
    assert loop.opcodes == ["LDG.E.128", "BRA.DIV", "LOP3.LUT", "STG.E.128", "BRA"]
    assert sass_budget.hot_loop(lines, "MUFU").count("LDG.E.128") == 1  # only the outer loop has one
    assert not sass_budget.hot_loop(lines, "STG.E.64").opcodes


@pytest.mark.parametrize(
    ("opcodes", "cost"),
    [
        (["FADD"] * 7, 7),
        (["LOP3.LUT"] * 4 + ["FADD"] * 3, 8),
        (["IMAD.WIDE.U32"] * 4, 8),
        (["IMAD.MOV.U32"] * 4, 4),
        (["MUFU.RCP"] + ["FFMA"] * 5, 8),
    ],
)
def test_the_cost_is_that_of_the_narrowest_pipe(opcodes, cost):
    assert sass_budget.Loop(opcodes, set()).cost() == cost


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"slots": 0.6}, "costs 0.62 slots an element, its budget is 0.6"),
        ({"loads": 2}, "has 1 16-byte loads in flight, not 2"),
        ({"kernel": "other"}, "no kernel other"),
        ({"per": "STG.E.64"}, "has no STG.E.64 in its loop"),
        ({"local": True}, "uses local memory"),
    ],
)
def test_what_fails(tmp_path, monkeypatch, capsys, change, message):
    text = SASS.replace("S2R R0", "STL [R1], R0 ;\n/*0008*/ S2R R0") if change.pop("local", False) else SASS
    row = {
        "file": "mask",
        "kernel": "k",
        "per": "STG.E.128",
        "elements": 8,
        "bytes": 4,
        "loads": 1,
        "slots": 1,
    }
    budgets = tmp_path / "budgets.json"
    budgets.write_text(json.dumps([{**row, "slots": 1, **change}]))
    monkeypatch.setattr(sass_budget, "BUDGETS", budgets)
    monkeypatch.setattr(sass_budget, "kernels_of", lambda _binary: {"k": parsed(text)})
    if message:
        with pytest.raises(SystemExit, match=message):
            sass_budget.main(tmp_path, write=False)
    else:
        sass_budget.main(tmp_path, write=False)
        assert "0.62       1    27.53      1  memory" in capsys.readouterr().out
        sass_budget.main(tmp_path, write=True)
        assert json.loads(budgets.read_text())[0]["slots"] == 0.63
