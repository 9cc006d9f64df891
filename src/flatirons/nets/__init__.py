"""Networks as pairs of functions over plain trees of arrays, so that `jax.jit`, `vmap` and safetensors work on them as they are."""
