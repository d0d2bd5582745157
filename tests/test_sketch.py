"""Sketch: its fields, its text form, and how many entries and bytes it keeps."""

import copy
import dataclasses
import json
import pickle
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
import torch
from cases import DTYPES, EVERY_BITS, sketches

import rad_kernels
from rad_kernels import Sketch
from rad_kernels.sketch import BITS, DRAWS, SAMPLINGS, VALID_DRAWS, WITHOUT_BITS, saved_nbytes


def test_fields_and_defaults():
    sketch = Sketch(0.1)
    assert (sketch.keep, sketch.sampling, sketch.draw, sketch.bits) == (0.1, "rows", "stratified", None)
    assert sketch == Sketch(keep=0.1, sampling="rows", draw="stratified", bits=None)
    assert repr(sketch) == "Sketch(keep=0.1, sampling='rows', draw='stratified', bits=None)"
    assert rad_kernels.Sketch is Sketch


def test_a_sketch_is_a_value():
    sketch = Sketch(0.1, "same")
    with pytest.raises(dataclasses.FrozenInstanceError):
        sketch.keep = 0.2
    assert len({sketch, Sketch(0.1, "same"), Sketch(0.1, "rows"), Sketch(0.2, "same")}) == 3
    for twin in (copy.copy(sketch), copy.deepcopy(sketch), pickle.loads(pickle.dumps(sketch))):
        assert twin == sketch and hash(twin) == hash(sketch) and twin.spec == sketch.spec
    other = dataclasses.replace(sketch, keep=0.5)
    assert other == Sketch(0.5, "same") and other.spec == Sketch(0.5, "same").spec


@pytest.mark.parametrize(
    "keep",
    [1, Fraction(1, 4), np.float32(0.25), np.float64(0.25), np.int64(1), 5e-1, 1e-6],
    ids=repr,
)
def test_any_real_number_is_a_keep(keep):
    sketch = Sketch(keep)
    assert type(sketch.keep) is float and sketch.keep == keep
    assert sketch == Sketch(float(keep))


def test_every_combination_is_valid_or_refused():
    for sampling in SAMPLINGS:
        for draw in DRAWS:
            if draw in VALID_DRAWS[sampling]:
                numbers = SAMPLINGS.index(sampling), DRAWS.index(draw)
                assert Sketch(0.5, sampling, draw).spec == (1, 2, *numbers, 0)
                # With everything kept there is nothing to draw: one spec stands for all.
                assert Sketch(1, sampling, draw).spec == (1, 1, 0, 0, 0)
            else:
                with pytest.raises(ValueError, match=f"{draw}.*{sampling}"):
                    Sketch(0.5, sampling, draw)


@pytest.mark.parametrize(
    ("sampling", "draw", "advice"),
    [
        (
            "different",
            "without_replacement",
            "use draw 'stratified' or 'with_replacement', or sampling 'rows' or",
        ),
        ("different", "norm", "use draw 'stratified' or 'with_replacement', or sampling 'rows'"),
        ("tile_rows", "norm", "or 'without_replacement' or 'with_replacement', or sampling 'rows'"),
        ("project", "norm", "use draw 'stratified' or 'hadamard', or sampling 'rows'"),
    ],
)
def test_a_refused_combination_names_what_would_work(sampling, draw, advice):
    with pytest.raises(ValueError, match=f"draw '{draw}' does not go with sampling '{sampling}': .*{advice}"):
        Sketch(0.5, sampling, draw)
    with pytest.raises(ValueError, match=advice):  # whatever is kept
        Sketch(1, sampling, draw)


def test_bits():
    for sampling in SAMPLINGS:
        for width in BITS:
            if sampling in WITHOUT_BITS:
                advice = "use bits=None, or sampling 'rows' or 'same' or 'different' or 'tile_rows'"
                with pytest.raises(ValueError, match=f"bits={width} does not go with.*'project'.*{advice}"):
                    Sketch(0.5, sampling, bits=width)
            else:
                assert Sketch(0.5, sampling, bits=width).spec == (1, 2, SAMPLINGS.index(sampling), 0, width)
            # Everything kept as codes: no sampling is left to go with.
            sketch = Sketch(1, sampling, bits=width)
            assert sketch.spec == (1, 1, 0, 0, width) and not sketch.is_exact
    for wrong in (0, 3, 16, -8):
        with pytest.raises(ValueError, match=f"bits must be None, 8, 4, 2, 1; got {wrong}"):
            Sketch(0.5, bits=wrong)
    for wrong in (True, 4.0, "4"):
        with pytest.raises(TypeError, match="bits must be None or an integer"):
            Sketch(0.5, bits=wrong)
    assert str(Sketch(0.5, bits=4)) == "rows:0.5:4bit" and Sketch.parse("rows:0.5:4bit") == Sketch(
        0.5, bits=4
    )
    assert Sketch.parse("same:0.5:without_replacement:1bit") == Sketch(0.5, "same", "without_replacement", 1)


def test_text_and_dict_round_trips():
    generator = np.random.default_rng(0)
    for sketch in sketches((*generator.uniform(1e-6, 1, 50), 1 / 3, 0.1 + 0.2, 1e-6, 1.0), EVERY_BITS):
        assert Sketch.parse(str(sketch)) == sketch
        assert Sketch(**json.loads(json.dumps(sketch.to_dict()))) == sketch
        assert eval(repr(sketch)) == sketch
    assert str(Sketch(0.1)) == "rows:0.1" and Sketch.parse("rows:1e-1") == Sketch(0.1)
    assert str(Sketch(1, "same", "with_replacement")) == "same:1.0:with_replacement"
    assert Sketch.parse("different:0.5:stratified") == Sketch(0.5, "different")


def test_kept_is_the_decimal_share_rounded_up():
    """ceil(keep * n) in floating point keeps one too many in 31 of these cases, such as 0.07 * 100."""
    mistaken = 0
    for hundredths in range(1, 101):
        share = Fraction(hundredths, 100)
        sketch = Sketch(hundredths / 100)
        for n in range(1, 862):
            kept = sketch.kept(n)
            assert kept == ceil(share * n) and 1 <= kept <= n
            mistaken += ceil(hundredths / 100 * n) != kept
    assert mistaken > 0
    assert Sketch(0.07).kept(100) == 7


@pytest.mark.parametrize("n", [1, 7, 2**31 + 1, 2**40])
def test_kept_of_extreme_shares(n):
    assert Sketch(1e-6).kept(n) == ceil(Fraction(n, 10**6))
    assert Sketch(1).kept(n) == n
    assert Sketch(0.999999).kept(n) == n - n // 10**6
    assert Sketch(1e-6).kept(0) == 0


def test_exactness():
    assert Sketch(1).is_exact and Sketch(1 - 1e-12, "same").is_exact
    assert not Sketch(0.999999).is_exact


def test_worthwhile_means_under_90_percent_of_the_bytes():
    for sketch in sketches(bits=EVERY_BITS):
        for rows, features in ((1, 1), (1, 64), (64, 1), (10, 16), (31, 33), (150, 784), (4096, 768)):
            for dtype in DTYPES:
                share = Fraction(
                    saved_nbytes(rows, features, dtype, sketch), rows * features * dtype.itemsize
                )
                expected = share < Fraction(9, 10) and not sketch.is_exact
                assert sketch.is_worthwhile(rows, features, dtype) is expected


def test_bytes_of_unknown_dtypes_are_refused():
    for dtype in (torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=f"dtype must be one of .*{dtype}"):
            saved_nbytes(4, 4, dtype, Sketch(0.5))
