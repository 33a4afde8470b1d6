"""Triton kernels, their launches and the ops made of them. Imports triton, and neither torch nor jax."""
