"""Gated feed-forward layers, with the parameter names of the models that they stand in for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from liger_torch.autograd import autocasting
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


LigerQwen3MoeSwiGLUMLP = LigerSwiGLUMLP
"""One expert of Qwen3-MoE where every expert is a module (transformers 4), and its shared expert."""


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


class LigerExperts(nn.Module):
    """All SwiGLU experts of a layer, with the parameters of transformers 5 (Mixtral, Qwen3-MoE, DeepSeek-V3).

    With e the experts that the router has chosen for a token, and p the weights that it gives them:

        y = sum over e of p_e * down_e(silu(gate_e(x)) * up_e(x))

    A token's rows are added in the router's order, so the same inputs give the same bits. In 16 bits, with widths that
    are multiples of 8, all experts run in one grouped product per projection and nothing waits for the device;
    otherwise expert by expert, for which the host must know how many tokens each one has.

    Args:
        config: has hidden_size, hidden_act, the number of experts (num_experts, num_local_experts or n_routed_experts)
            and the width of one (moe_intermediate_size, or intermediate_size where that is absent).

    Raises:
        ValueError: a configuration without a number of experts, or with another activation.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        _require_silu(self, config.hidden_act)
        names = ("num_experts", "num_local_experts", "n_routed_experts")
        counts = [getattr(config, name, None) for name in names]
        self.num_experts = next((n for n in counts if n is not None), 0)
        if not self.num_experts:
            raise ValueError(
                f"LigerExperts: the configuration has no number of experts; it needs {' or '.join(names)}."
            )
        width = getattr(config, "moe_intermediate_size", None)
        self.intermediate_dim = config.intermediate_size if width is None else width
        self.hidden_dim = config.hidden_size
        self.gate_up_proj = nn.Parameter(
            torch.empty(self.num_experts, 2 * self.intermediate_dim, self.hidden_dim)
        )
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, self.hidden_dim, self.intermediate_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As those of `torch.nn.Linear`."""
        for weight in (self.gate_up_proj, self.down_proj):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Tokens (n, hidden), their experts (n, k) and the experts' weights (n, k), to (n, hidden)."""
        n_tokens, k = top_k_index.shape
        experts, order = torch.sort(top_k_index.flatten(), stable=True)
        all_experts = torch.arange(self.num_experts, device=experts.device, dtype=experts.dtype)
        ends = torch.searchsorted(experts, all_experts, right=True, out_int32=True)
        hidden = liger_swiglu(_by_expert(hidden_states[order // k], self.gate_up_proj, ends))
        result = _by_expert(hidden, self.down_proj, ends) * top_k_weights.flatten()[order, None]
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        return result[place].view(n_tokens, k, self.hidden_dim).sum(1).to(hidden_states.dtype)


def _by_expert(rows: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Each row times its expert's weight, transposed; those of expert e end before ends[e]."""
    kind = rows.device.type
    if autocasting(kind):  # torch would cast for single products, not for the grouped one
        dtype = torch.get_autocast_dtype(kind)
        rows, weight = rows.to(dtype), weight.to(dtype)
    narrow = rows.dtype == weight.dtype and rows.dtype in (torch.bfloat16, torch.float16)
    if narrow and all(width % 8 == 0 for width in weight.shape[1:]) and rows.shape[0]:
        return nn.functional.grouped_mm(rows, weight.transpose(1, 2), offs=ends)
    starts = [0, *ends.tolist()]
    parts = [rows[a:b] @ w.t() for a, b, w in zip(starts, starts[1:], weight, strict=False)]
    return torch.cat(parts)
