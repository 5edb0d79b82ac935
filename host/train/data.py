"""The data: scikit-learn's handwritten digits, which come with the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

__all__ = ["Digits"]

CLASSES = 10
SIDE = 8  # pixels
TEST_IMAGES = 360  # a fifth of the 1,797


@dataclass(frozen=True)
class Digits:
    """Images of 8 x 8 pixels with their labels, split for training and testing.

    Attributes
    ----------
    train_images, test_images : (1437, 64), (360, 64) float32 tensors
        Pixels, shifted and scaled by one mean and one standard deviation, those of all pixels
        of the training images.
    train_labels, test_labels : (1437,), (360,) int64 tensors
        Labels from 0 to 9.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    @classmethod
    def load(cls, seed: int) -> Self:
        """The data, split at random by `seed` with equal shares of every label."""
        images, labels = load_digits(return_X_y=True)
        train_x, test_x, train_y, test_y = train_test_split(
            images, labels, test_size=TEST_IMAGES, random_state=seed, stratify=labels
        )
        mean, deviation = train_x.mean(), train_x.std()
        return cls(
            torch.tensor((train_x - mean) / deviation, dtype=torch.float32),
            torch.tensor(train_y),
            torch.tensor((test_x - mean) / deviation, dtype=torch.float32),
            torch.tensor(test_y),
        )
