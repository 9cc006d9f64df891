"""Rows over several devices: what makes one program data-parallel without the system's knowing."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec

AXIS = "envs"
"""The mesh's one axis: environments, and the rows that came from them."""


def is_active() -> bool:
    """Whether this is traced for several devices."""
    return AXIS in jax.sharding.get_abstract_mesh().axis_names


def spread(tree: Any) -> Any:
    """Cut the leading axis of each array over the devices of the mesh under which this is traced. The tree itself where there is no mesh;
    arrays whose rows the devices do not divide stay whole.

    It changes where things are computed and nothing else: the compiler adds up what the devices find."""
    if not is_active():
        return tree
    count = jax.sharding.get_abstract_mesh().shape[AXIS]

    def one(x: Any) -> Any:
        return jax.lax.with_sharding_constraint(x, PartitionSpec(AXIS)) if x.ndim and x.shape[0] % count == 0 else x

    return jax.tree.map(one, tree)
