"""The meaning of every op, once, on the Python array API.

Each reference is differentiable by the framework whose arrays it is given, and is what runs on a CPU. Arithmetic is
float32, or float64 for float64 inputs, whatever the storage dtype.
"""
