"""The list of all ops: what the frontends register and the tests run over."""

from __future__ import annotations

from liger.op import Op
from liger_triton.cross_entropy import CROSS_ENTROPY
from liger_triton.divergence import JSD, KL_DIV, TVD
from liger_triton.embedding import EMBEDDING
from liger_triton.glu import GEGLU, SWIGLU
from liger_triton.group_norm import GROUP_NORM
from liger_triton.int2_matmul import INT2_MATMUL
from liger_triton.layer_norm import ADD_LAYER_NORM, LAYER_NORM
from liger_triton.linear_cross_entropy import LINEAR_CROSS_ENTROPY
from liger_triton.linear_jsd import LINEAR_JSD
from liger_triton.linear_logprobs import LINEAR_LOGPROBS
from liger_triton.logprobs import LOGPROBS
from liger_triton.qk_norm_rope import QK_NORM_ROPE
from liger_triton.relu_squared import RELU_SQUARED
from liger_triton.rms_norm import ADD_RMS_NORM, RMS_NORM
from liger_triton.rope import MROPE, ROPE, ROPE_AT_POSITIONS
from liger_triton.softmax import SOFTMAX, SPARSEMAX

OPS: tuple[Op, ...] = (
    RMS_NORM,
    ADD_RMS_NORM,
    LAYER_NORM,
    ADD_LAYER_NORM,
    GROUP_NORM,
    ROPE,
    ROPE_AT_POSITIONS,
    MROPE,
    QK_NORM_ROPE,
    SWIGLU,
    GEGLU,
    RELU_SQUARED,
    SOFTMAX,
    SPARSEMAX,
    EMBEDDING,
    INT2_MATMUL,
    CROSS_ENTROPY,
    LINEAR_CROSS_ENTROPY,
    LOGPROBS,
    LINEAR_LOGPROBS,
    KL_DIV,
    JSD,
    TVD,
    LINEAR_JSD,
)
