"""Models: Flax modules, pure functions of (params, inputs, key)."""
