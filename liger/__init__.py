"""The framework-neutral core: launches, ops, backends, devices and references.

Nothing in this package imports torch, jax or triton when it is imported.
"""

__version__ = "0.1.0"
