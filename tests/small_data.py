"""Small data sets for tests: ten pictures with noise on them, as a task like `data:mnist`, and a table, as one like `data:uci-yacht`."""

from __future__ import annotations

import functools

import numpy as np

from flatirons.envs.datasets import DataTask
from flatirons.types import ArraySpec, Box, Discrete, Spec


@functools.cache
def pictures() -> DataTask:
    """2,000 training and 500 test pictures, uint8 `[n, 28, 28]`, of ten classes."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 256, (10, 28, 28)) * (rng.random((10, 28, 28)) < 0.3)

    def some(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 10
        noise = rng.normal(0.0, 40.0, (n, 28, 28)) * (kinds[labels] > 0)
        return np.clip(kinds[labels] + noise, 0, 255).astype(np.uint8), labels.astype(np.uint8)

    (images, labels), (test_images, test_labels) = some(2000), some(500)
    arrays = {"train_images": images, "train_labels": labels, "test_images": test_images, "test_labels": test_labels}
    return DataTask("data:pictures", 1, Spec(ArraySpec((28, 28), "uint8", 0, 255), Discrete(10)), arrays, "0" * 64)


@functools.cache
def rows() -> DataTask:
    """24 rows of three features and their sum; one split of 18 and 6."""
    x = np.random.default_rng(0).normal(size=(24, 3))
    rows = np.arange(24)[None]
    arrays = {"x": x, "y": x.sum(axis=1), "train": rows[:, :18], "test": rows[:, 18:]}
    return DataTask("data:rows", 1, Spec(ArraySpec((3,)), Box((-np.inf,), (np.inf,))), arrays, "0" * 64)
