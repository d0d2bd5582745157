"""CIFAR-10 from any of the forms in which it is passed on."""

from __future__ import annotations

import io
import pickle
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

CLASSES = 10
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32

TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
PICKLED = ("_reconstruct", "ndarray", "dtype", "scalar", "encode", "_frombuffer")
ARCHIVES = ("train.npz", "test.npz")


class Images(NamedTuple):
    """Images uint8 [n, 3, 32, 32]; labels int64 [n]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_cifar10(directory: str | PathLike[str]) -> Images:
    """All of CIFAR-10, from the first of these that `directory` (or its folder of the usual name) holds.

    * ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``: the binary version;
    * ``data_batch_1`` to ``data_batch_5`` and ``test_batch``: the Python version. Only its arrays, lists and
      strings are unpickled, nothing else that such a file may hold;
    * ``train.npz`` and ``test.npz`` with JPEG files end to end in ``jpeg``, their ``offsets`` [n + 1] and
      ``labels`` [n], which Pillow decodes.

    Raises:
        FileNotFoundError: there is none of them; the message says what was looked for and where.
        ValueError: a file is damaged or has another form.
        ModuleNotFoundError: JPEG files, and Pillow is not installed.
    """
    given = Path(directory)
    if not given.is_dir():
        raise FileNotFoundError(f"CIFAR-10: {given} is not a directory")
    names = ("", "cifar10", "cifar-10-batches-bin", "cifar-10-batches-py")
    for folder in (given / name for name in names):
        for files, read in (
            ([f"{name}.bin" for name in (*TRAIN_BATCHES, TEST_BATCH)], _read_binary),
            ([*TRAIN_BATCHES, TEST_BATCH], _read_pickle),
            (list(ARCHIVES), _read_jpegs),
        ):
            paths = [folder / name for name in files]
            if all(path.is_file() for path in paths):
                parts = [read(path) for path in paths]
                train, test = parts[:-1], parts[-1]
                images, labels = (torch.cat([part[i] for part in train]) for i in range(2))
                return Images(images, labels, *test)
    raise FileNotFoundError(
        f"CIFAR-10: found neither data_batch_1.bin to 5 and test_batch.bin, nor the same without .bin, nor "
        f"train.npz and test.npz in {given} or its folders {', '.join(names[1:])}"
    )


def _checked(path: Path, pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    if len(labels) == 0 or pixels.shape != (len(labels), PIXELS):
        raise ValueError(f"{path}: pixels of shape {pixels.shape} for {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(f"{path}: labels must be in 0..{CLASSES - 1}, found {labels.min()}..{labels.max()}")
    images = torch.from_numpy(np.array(pixels, dtype=np.uint8)).view(-1, *SHAPE)
    return images, torch.from_numpy(labels.astype(np.int64))


def _read_binary(path: Path) -> tuple[Tensor, Tensor]:
    """Records of one label and 3,072 bytes: red, green and blue planes."""
    content = np.fromfile(path, dtype=np.uint8)
    if content.size == 0 or content.size % (1 + PIXELS):
        raise ValueError(f"{path}: {content.size} bytes, expected a multiple of {1 + PIXELS}")
    records = content.reshape(-1, 1 + PIXELS)
    return _checked(path, records[:, 1:], records[:, 0])


class _ArraysOnly(pickle.Unpickler):
    """Refuses everything that is no part of a numpy array."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in PICKLED or module.split(".")[0] not in ("numpy", "_codecs"):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return super().find_class(module, name)


def _read_pickle(path: Path) -> tuple[Tensor, Tensor]:
    """A dictionary with ``data`` [n, 3072] and ``labels``; its keys may be bytes."""
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
        named = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        pixels, labels = np.asarray(named["data"]), np.asarray(named["labels"])
    except (pickle.UnpicklingError, EOFError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{path}: not a batch of CIFAR-10 ({error})") from error
    return _checked(path, pixels, labels)


def _read_jpegs(path: Path) -> tuple[Tensor, Tensor]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the images of {path} are JPEG files, which Pillow decodes: pip install pillow"
        ) from error
    try:
        with np.load(path) as archive:
            data, offsets, labels = archive["jpeg"], archive["offsets"], archive["labels"]
        if len(offsets) != len(labels) + 1:
            raise ValueError(f"{len(offsets)} offsets for {len(labels)} labels")
        pixels = np.empty((len(labels), *SHAPE), dtype=np.uint8)
        for number, (begin, end) in enumerate(pairwise(offsets)):
            with Image.open(io.BytesIO(data[begin:end].tobytes())) as image:
                pixels[number] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (UnidentifiedImageError, KeyError, IndexError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not an archive of 32x32 JPEG files ({error})") from error
    return _checked(path, pixels.reshape(len(labels), PIXELS), labels)
