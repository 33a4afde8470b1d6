"""Training steps of whole models: time, memory, the longest context and the losses, beside their peers.

`shapes` are the models, `arms` what is done to a Hugging Face model, `step`, `longest` and `flax_decoder` what is
measured of one `case`, in a `worker` process of its own, `pool` runs the workers, `command` is the command, and
`report` what the report makes of the `results`.
"""

from benchmarks.models.command import arguments, run

__all__ = ["arguments", "run"]
