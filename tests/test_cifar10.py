"""CIFAR-10's three forms, made small here, and files that are none of them."""

import io
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from rad_kernels.cifar10 import TEST_BATCH, TRAIN_BATCHES, load_cifar10


def batch(number, count=3):
    """A flat grey of its own for each image, which JPEG keeps as it is, so that all forms agree."""
    labels = [(number + i) % 10 for i in range(count)]
    grey = np.arange(count, dtype=np.uint8)[:, None] * 16 + number * 8
    return np.broadcast_to(grey, (count, 3072)).copy(), labels


def write_binary(folder):
    for number, name in enumerate((*TRAIN_BATCHES, TEST_BATCH)):
        pixels, labels = batch(number)
        records = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def write_pickle(folder):
    for number, name in enumerate((*TRAIN_BATCHES, TEST_BATCH)):
        pixels, labels = batch(number)
        (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2))


def write_jpegs(folder):
    for name, numbers in (("train.npz", range(5)), ("test.npz", [5])):
        files, labels = [], []
        for number in numbers:
            pixels, some = batch(number)
            for image in pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1):
                file = io.BytesIO()
                Image.fromarray(image).save(file, "JPEG", quality=100)
                files.append(np.frombuffer(file.getvalue(), np.uint8))
            labels += some
        offsets = np.cumsum([0, *map(len, files)])
        content = {"jpeg": np.concatenate(files), "offsets": offsets, "labels": np.array(labels, np.uint8)}
        np.savez(folder / name, **content)


@pytest.mark.parametrize("write", [write_binary, write_pickle, write_jpegs])
@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_every_form(tmp_path, write, inside):
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    write(folder)
    found = load_cifar10(tmp_path)
    assert found.train_images.shape == (15, 3, 32, 32) and found.test_images.shape == (3, 3, 32, 32)
    assert found.train_images.dtype == torch.uint8 and found.train_labels.dtype == torch.int64
    pixels, labels = batch(2)
    assert torch.equal(found.train_images[6:9].flatten(1), torch.from_numpy(pixels))
    assert found.train_labels[6:9].tolist() == labels and found.test_labels.tolist() == batch(5)[1]


def test_planes_are_red_green_and_blue(tmp_path):
    write_binary(tmp_path)
    record = np.repeat(np.array([10, 20, 30], np.uint8), 1024)
    (tmp_path / "test_batch.bin").write_bytes(bytes([7]) + record.tobytes())
    found = load_cifar10(tmp_path)
    assert (
        found.test_images[0].amin((1, 2)).tolist()
        == found.test_images[0].amax((1, 2)).tolist()
        == [10, 20, 30]
    )


class Foreign:
    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("test_batch.bin", b"123", "3 bytes, expected a multiple of 3073"),
        ("test_batch.bin", b"", "0 bytes, expected a multiple"),
        ("test_batch.bin", bytes([10]) + bytes(3072), "labels must be in 0..9, found 10..10"),
        ("test_batch", pickle.dumps({"data": Foreign(), "labels": [1]}), "getcwd has no place in it"),
        (
            "test_batch",
            pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [1, 2]}),
            r"shape \(2, 5\)",
        ),
        ("test_batch", b"\x80", "not a batch of CIFAR-10"),
        ("test_batch", pickle.dumps([1]), "not a batch of CIFAR-10"),
        ("test.npz", b"PK", "not an archive of 32x32 JPEG files"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    write = write_binary if name.endswith("bin") else write_jpegs if name.endswith("npz") else write_pickle
    write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_cifar10(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="found neither data_batch_1"):
        load_cifar10(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        load_cifar10(tmp_path / "nowhere")
