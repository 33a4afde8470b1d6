"""Layers for Flax Linen: constructors and parameters as in `flax.linen`, so that a checkpoint still loads."""
