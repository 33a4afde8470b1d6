"""The commands of `python -m liger`, one file each: a module with `HELP`, `arguments(parser)` and `run(options)`.

They are users of the core that live in it for the sake of one command line, and import frameworks only when they run.
"""
