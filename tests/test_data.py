"""Loaders: the embedded digits, and idx files written here, good and damaged."""

import gzip
import os
import struct

import numpy as np
import pytest
import torch

from rad_kernels.data import load_digits_8x8, load_mnist

TRAIN, TEST, SIDE = 7, 3, 5


def idx(array, magic=None):
    array = np.asarray(array, dtype=np.uint8)
    magic = magic if magic is not None else 2048 + array.ndim
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (TRAIN, SIDE, SIDE)),
        "train-labels-idx1-ubyte": rng.integers(0, 10, TRAIN),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (TEST, SIDE, SIDE)),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, TEST),
    }


@pytest.fixture
def folder(tmp_path, arrays):
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def test_digits_are_real_and_split_once():
    digits = load_digits_8x8()
    assert digits.train_images.shape == (1442, 8, 8) and digits.test_images.shape == (355, 8, 8)
    assert digits.train_labels.shape == (1442,) and digits.test_labels.shape == (355,)
    for images, labels in (digits[:2], digits[2:]):
        assert images.dtype is torch.float32 and labels.dtype is torch.int64
        assert images.min() == 0 and images.max() == 1
        assert labels.bincount().max() <= 1.1 * labels.bincount().min()  # digits are about equally frequent
    assert digits.train_labels[:10].tolist() == list(range(10))
    assert digits.test_labels[:6].tolist() == [5, 0, 9, 8, 7, 1]
    again = load_digits_8x8()
    assert all(torch.equal(a, b) for a, b in zip(digits, again, strict=True))


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_mnist_files_in_all_spellings(tmp_path, arrays, gzipped, dotted):
    for name, array in arrays.items():
        name = name.replace("-idx", ".idx") if dotted else name
        content = idx(array)
        path = tmp_path / (name + ".gz" if gzipped else name)
        path.write_bytes(gzip.compress(content) if gzipped else content)
    digits = load_mnist(str(tmp_path))
    expected = [torch.from_numpy(array) for array in arrays.values()]
    assert digits.train_images.dtype is torch.float32 and digits.train_labels.dtype is torch.int64
    assert torch.equal(digits.train_images, expected[0].float() / 255)
    assert torch.equal(digits.train_labels, expected[1])
    assert torch.equal(digits.test_images, expected[2].float() / 255)
    assert torch.equal(digits.test_labels, expected[3])


def test_missing_files_are_all_named(folder):
    (folder / "train-labels-idx1-ubyte").unlink()
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_mnist(folder)
    assert str(error.value) == (
        f"missing train-labels-idx1-ubyte[.gz], t10k-images-idx3-ubyte[.gz]; looked in {folder}"
    )


def test_a_directory_that_does_not_exist(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"missing train-images.*; looked in .*nowhere, which is not a"
    ):
        load_mnist(tmp_path / "nowhere")


def damaged(name, change, message):
    return pytest.param(name, change, message, id=message[:24])


@pytest.mark.parametrize(
    "name, change, message",
    [
        damaged(
            "train-images-idx3-ubyte",
            lambda c: c[:-1],
            "174 bytes after the header, but its sizes 7 x 5 x 5 need 175",
        ),
        damaged("train-images-idx3-ubyte", lambda c: c + b"\0", "176 bytes after the header"),
        damaged("t10k-images-idx3-ubyte", lambda c: c[:15], "15 bytes, too short for its header of 16"),
        damaged("t10k-labels-idx1-ubyte", lambda c: b"", "0 bytes, too short for its header of 8"),
        damaged(
            "train-images-idx3-ubyte",
            lambda c: struct.pack(">I", 2049) + c[4:],
            "magic number 2049, expected 2051",
        ),
        damaged(
            "train-labels-idx1-ubyte",
            lambda c: struct.pack(">I", 2051) + c[4:],
            "magic number 2051, expected 2049",
        ),
        damaged("train-labels-idx1-ubyte", lambda c: idx(np.zeros(6)), "6 labels for the 7 images of"),
        damaged("t10k-labels-idx1-ubyte", lambda c: idx([1, 10, 2]), "labels must be in 0..9, found 10"),
        damaged(
            "t10k-images-idx3-ubyte", lambda c: idx(np.zeros((3, 4, 5))), "images of 4x5 pixels, but those of"
        ),
        damaged(
            "train-images-idx3-ubyte", lambda c: idx(np.zeros((7, 0, 5))), "no pixels, its size is 7 x 0 x 5"
        ),
        damaged(
            "train-images-idx3-ubyte",
            lambda c: struct.pack(">4I", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1) + c[16:],
            "need 79228162458924105385300197375",
        ),
    ],
)
def test_damaged_files(folder, name, change, message):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError) as error:
        load_mnist(folder)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c[: len(c) // 2],
        lambda c: b"not gzip",
        lambda c: c[:10] + b"\xff" + c[11:],  # the first byte of the deflate stream: no such block type
        lambda c: c[:-8] + bytes(4) + c[-4:],  # the checksum
        lambda c: b"",
    ],
    ids=["truncated", "other", "corrupt", "checksum", "empty"],
)
def test_damaged_gzip(folder, arrays, change):
    name = "train-images-idx3-ubyte"
    os.remove(folder / name)
    path = folder / (name + ".gz")
    path.write_bytes(change(gzip.compress(idx(arrays[name]))))
    with pytest.raises(ValueError) as error:
        load_mnist(folder)
    assert str(error.value).startswith(f"{path}: ")
