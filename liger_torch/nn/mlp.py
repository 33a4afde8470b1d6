"""Gated feed-forward layers, with the parameter names of the models that they stand in for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from liger_torch.functional import liger_geglu, liger_swiglu


def _require_silu(layer: nn.Module, activation: str) -> None:
    if activation not in ("silu", "swish"):
        raise ValueError(
            f"{type(layer).__name__}: the activation is {activation!r}; this layer computes SwiGLU, which needs 'silu'."
        )


class _GatedMLP(nn.Module):
    """Three linear layers under Llama's names; what joins gate and up is the subclass's."""

    def __init__(self, config: Any, intermediate_size: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.intermediate_size = config.intermediate_size if intermediate_size is None else intermediate_size
        bias = bool(getattr(config, "mlp_bias", False))
        self.gate_proj = nn.Linear(self.hidden_size, self.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(self.hidden_size, self.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(self.intermediate_size, self.hidden_size, bias=bias)


class LigerSwiGLUMLP(_GatedMLP):
    """down(silu(gate(x)) * up(x)), as in Llama.

    Args:
        config: has hidden_size, intermediate_size, hidden_act and, optionally, mlp_bias.
        intermediate_size: in place of the configuration's.
    """

    def __init__(self, config: Any, intermediate_size: int | None = None) -> None:
        super().__init__(config, intermediate_size)
        _require_silu(self, config.hidden_act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden) to (..., hidden)."""
        return self.down_proj(liger_swiglu(self.gate_proj(x), self.up_proj(x)))


class LigerGEGLUMLP(_GatedMLP):
    """down(gelu(gate(x)) * up(x)), as in Gemma.

    Args:
        config: has hidden_size, intermediate_size, hidden_activation (or hidden_act, where that is absent or None) and,
            optionally, mlp_bias. The activation is "gelu_pytorch_tanh" or "gelu", which is the exact one.
        intermediate_size: in place of the configuration's.
    """

    def __init__(self, config: Any, intermediate_size: int | None = None) -> None:
        super().__init__(config, intermediate_size)
        activation = getattr(config, "hidden_activation", None) or config.hidden_act
        approximate = {"gelu_pytorch_tanh": "tanh", "gelu": "none"}
        if activation not in approximate:
            raise ValueError(
                f"{type(self).__name__}: the activation is {activation!r}; this layer computes GeGLU, which needs "
                "'gelu_pytorch_tanh' or 'gelu'."
            )
        self.approximate = approximate[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden) to (..., hidden)."""
        return self.down_proj(liger_geglu(self.gate_proj(x), self.up_proj(x), self.approximate))


class LigerFalconH1SwiGLUMLP(_GatedMLP):
    """down(silu(gate(x) * gate_multiplier) * up(x)) * down_multiplier, as in Falcon-H1.

    Args:
        config: has hidden_size, intermediate_size, hidden_act, mlp_multipliers (of the gate and of the result) and,
            optionally, mlp_bias.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _require_silu(self, config.hidden_act)
        self.gate_multiplier, self.down_multiplier = map(float, config.mlp_multipliers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden) to (..., hidden)."""
        hidden = liger_swiglu(self.gate_proj(x), self.up_proj(x), gate_multiplier=self.gate_multiplier)
        return self.down_proj(hidden) * self.down_multiplier


class LigerPhi3SwiGLUMLP(nn.Module):
    """SwiGLU with one packed projection [gate | up], as in Phi-3; the packed result is read without a copy."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        _require_silu(self, config.hidden_act)
        self.config = config
        self.hidden_size = config.hidden_size
        self.intermediate_size = config.intermediate_size
        self.gate_up_proj = nn.Linear(self.hidden_size, 2 * self.intermediate_size, bias=False)
        self.down_proj = nn.Linear(self.intermediate_size, self.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., hidden) to (..., hidden)."""
        return self.down_proj(liger_swiglu(self.gate_up_proj(hidden_states)))


class LigerBlockSparseTop2MLP(nn.Module):
    """One expert of Mixtral: w2(silu(w1(x)) * w3(x))."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        _require_silu(self, config.hidden_act)
        self.ffn_dim = config.intermediate_size
        self.hidden_dim = config.hidden_size
        self.w1 = nn.Linear(self.hidden_dim, self.ffn_dim, bias=False)
        self.w2 = nn.Linear(self.ffn_dim, self.hidden_dim, bias=False)
        self.w3 = nn.Linear(self.hidden_dim, self.ffn_dim, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., hidden) to (..., hidden)."""
        return self.w2(liger_swiglu(self.w1(hidden_states), self.w3(hidden_states)))
