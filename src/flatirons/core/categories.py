"""Whole numbers that stand for categories. Without JAX, for an environment's worker process asks too."""

from __future__ import annotations

import math

from flatirons.types import ArraySpec

MOST_CATEGORIES = 1024
"""Whole numbers of a wider range are taken as numbers, not as names of categories."""


def is_category(spec: ArraySpec) -> bool:
    """Whether this array holds whole numbers that stand for categories (Discrete, MultiDiscrete), to be given one-hot."""
    if spec.dtype not in ("int32", "int64") or len(spec.shape) > 1 or not math.isfinite(spec.high - spec.low):
        return False
    return spec.high - spec.low < MOST_CATEGORIES
