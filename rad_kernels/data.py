"""Handwritten digits: a small real set that needs no download, and MNIST from its files."""

from __future__ import annotations

import gzip
import struct
import zlib
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IMAGE_MAGIC = 2051  # unsigned bytes in three dimensions
LABEL_MAGIC = 2049  # unsigned bytes in one dimension
CLASSES = 10

# Training images, training labels, test images, test labels: the two spellings of each.
MNIST_FILES = (
    ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
)


class Digits(NamedTuple):
    """Images float32 [n, height, width] in [0, 1], neither centred nor scaled further; labels int64 [n]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits_8x8() -> Digits:
    """The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn (from UCI's optdigits).

    The split is fixed: of each digit every fifth image tests (355), the others train (1,442). Both parts
    come from the same 13 writers.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the embedded 8x8 digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / 16)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(CLASSES):
        test[(labels == digit).nonzero()[4::5]] = True
    return Digits(images[~test], labels[~test], images[test], labels[test])


def load_mnist(directory: str | PathLike[str]) -> Digits:
    """MNIST, or any set in its format, from the four idx files in `directory`.

    Each may be raw or gzipped (.gz) and named train-images-idx3-ubyte or train-images.idx3-ubyte; the others
    likewise.

    Raises:
        FileNotFoundError: files are missing; the message names them and where they were looked for.
        ValueError: a file is damaged, has another format, or its counts do not fit.
    """
    directory = Path(directory)
    paths = [_find(directory, names) for names in MNIST_FILES]
    found = [path for path in paths if path is not None]
    if len(found) < len(paths):
        missing = ", ".join(f"{names[0]}[.gz]" for names, path in zip(MNIST_FILES, paths) if path is None)
        where = f"{directory}" if directory.is_dir() else f"{directory}, which is not a directory"
        raise FileNotFoundError(f"missing {missing}; looked in {where}")
    train_images, train_labels = _read_pair(found[0], found[1])
    test_images, test_labels = _read_pair(found[2], found[3])
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"{found[2]}: images of {_size(test_images)} pixels, "
            f"but those of {found[0]} have {_size(train_images)}"
        )
    return Digits(train_images, train_labels, test_images, test_labels)


def _find(directory: Path, names: tuple[str, ...]) -> Path | None:
    candidates = (directory / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_pair(images_path: Path, labels_path: Path) -> tuple[Tensor, Tensor]:
    images = _read_idx(images_path, IMAGE_MAGIC, dimensions=3)
    labels = _read_idx(labels_path, LABEL_MAGIC, dimensions=1)
    if len(images) != len(labels):
        raise ValueError(f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path}")
    if images.size == 0:
        raise ValueError(f"{images_path}: no pixels, its size is {' x '.join(map(str, images.shape))}")
    if labels.max() >= CLASSES:
        raise ValueError(f"{labels_path}: labels must be in 0..{CLASSES - 1}, found {labels.max()}")
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels).long()


def _read_idx(path: Path, magic: int, dimensions: int) -> np.ndarray:
    """The array in one idx file: big-endian magic number, one 32-bit size a dimension, unsigned bytes."""
    content = _content(path)
    header = struct.Struct(f">{1 + dimensions}I")
    if len(content) < header.size:
        raise ValueError(f"{path}: {len(content)} bytes, too short for its header of {header.size}")
    found, *sizes = header.unpack_from(content)
    if found != magic:
        raise ValueError(f"{path}: magic number {found}, expected {magic}")
    expected = int(np.prod(sizes, dtype=object))
    if len(content) - header.size != expected:
        raise ValueError(
            f"{path}: {len(content) - header.size} bytes after the header, but its sizes "
            f"{' x '.join(map(str, sizes))} need {expected}"
        )
    # A copy, because torch wants to own writable memory.
    return np.frombuffer(content, dtype=np.uint8, offset=header.size).reshape(sizes).copy()


def _content(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not a complete gzip file ({error})") from error


def _size(images: Tensor) -> str:
    return f"{images.shape[1]}x{images.shape[2]}"
