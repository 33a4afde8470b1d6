"""What is called experimental upstream: `embedding`."""

from liger_jax.functional import embedding

__all__ = ["embedding"]
