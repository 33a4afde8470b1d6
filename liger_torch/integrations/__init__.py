"""Ways into other libraries that users switch on by name, and can switch off again; nothing here runs on import.

- `liger_kernel_alias.install()`: what imports `liger_kernel` gets this package.
- `trl_logprobs.install()`: TRL's trainers take their log-probabilities from `fused_linear_logprobs`.
- `trl_gkd.install()`: TRL's trainer of generalised knowledge distillation takes its divergence from `liger_jsd`.
- `hub_kernels.register()`: `model.set_use_kernels(True)` in transformers takes this package's layers.
"""
