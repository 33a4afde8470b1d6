"""The JAX frontend where no kernel runs: the reference, chosen by the platform that the program is lowered for."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import jax_cases
import numpy as np
import pytest
from jax_cases import CASES, Case

import liger_jax
from liger_jax import batching, implementations

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def close(ours: Any, expected: Any, tolerance: float = 2e-6) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max(initial=0))


def inputs(case: Case, seed: int = 0) -> tuple[tuple[Any, ...], Any]:
    rng = np.random.default_rng(seed)
    arguments = case.make(rng, jnp.float32)
    return arguments, jax_cases.cotangents(rng, jax.eval_shape(case.ours, *arguments))


@functools.cache
def plain(case: Case) -> Any:
    """Values and gradients of the plain function, compiled once."""
    return jax.jit(functools.partial(jax_cases.gradients, case.plain, case))


@functools.cache
def expected(case: Case, seed: int = 0) -> Any:
    """What the plain function gives at these inputs."""
    return plain(case)(*inputs(case, seed))


@cases
def test_values_and_gradients(case: Case) -> None:
    """Without jit; with it below, and over checkpoints in test_jax_every_op."""
    close(jax_cases.gradients(case.ours, case, *inputs(case)), expected(case))


@cases
@pytest.mark.parametrize("implementation", ["triton", "xla"])
def test_vmap_of_gradients(case: Case, implementation: str) -> None:
    function = functools.partial(case.ours, implementation=implementation)
    examples = [inputs(case, seed) for seed in range(3)]
    batch, cotangent = jax.tree.map(lambda *a: jnp.stack(a), *examples)
    ours = jax.jit(jax.vmap(functools.partial(jax_cases.gradients, function, case)))(batch, cotangent)
    close(ours, jax.tree.map(lambda *a: jnp.stack(a), *(expected(case, seed) for seed in range(3))))


def primitives(jaxpr: Any) -> list[Any]:
    """Every equation of our primitives, also those inside others."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("liger_forward", "liger_backward"):
            found.append(equation)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += primitives(inner)
    return found


def test_only_what_is_differentiated_is_computed() -> None:
    x, scale = jax_cases.named("rms_norm").make(np.random.default_rng(0), jnp.float32)

    def backward(argnums: Any) -> Any:
        gradient = jax.grad(lambda x, scale: jnp.sum(liger_jax.rms_norm(x, scale)), argnums)
        jaxpr = jax.make_jaxpr(gradient)(x, scale)
        (call,) = [e for e in primitives(jaxpr.jaxpr) if e.primitive.name == "liger_backward"]
        return call.params["call"].needs

    assert backward(0) == (True, False)
    assert backward(1) == (False, True)
    assert backward((0, 1)) == (True, True)


def test_a_call_that_is_not_differentiated_saves_nothing() -> None:
    x, kernel, labels = jax_cases.named("linear_cross_entropy").make(np.random.default_rng(0), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda *a: liger_jax.linear_softmax_cross_entropy(*a, reduction="mean"))(
        x, kernel, labels
    )
    (call,) = primitives(jaxpr.jaxpr)
    assert call.params["call"].needs == (False,) * 7
    assert len(call.outvars) == 1


def test_an_output_without_cotangent_is_none_of_backwards_business() -> None:
    x = jnp.ones((2, 8))
    gradient = jax.grad(lambda x: jnp.sum(liger_jax.add_rms_norm(x, x).y))
    (call,) = [
        e for e in primitives(jax.make_jaxpr(gradient)(x).jaxpr) if e.primitive.name == "liger_backward"
    ]
    assert call.params["cotangents"] == (True, False)


def test_two_operands_that_share_a_gradient() -> None:
    (x, residual, scale), (dy, ds) = inputs(jax_cases.named("add_rms_norm"))
    for argnums in (0, 1, (0, 1)):

        def gradient(function: Any, argnums: Any = argnums) -> Any:
            def loss(x: Any, r: Any) -> Any:
                return sum(jnp.vdot(a, b) for a, b in zip(function(x, r, scale), (dy, ds), strict=True))

            return jax.grad(loss, argnums)(x, residual)

        close(gradient(liger_jax.add_rms_norm), gradient(jax_cases.plain_add_rms_norm))


def test_checkpoint_policies_see_the_residuals() -> None:
    x, scale = jax_cases.named("rms_norm").make(np.random.default_rng(0), jnp.float32)

    def forward_passes(policy: Any) -> int:
        """How often the gradient runs the op's forward pass: again, unless its residual was saved."""
        function = jax.checkpoint(lambda x: jnp.sum(liger_jax.rms_norm(x, scale)), policy=policy)
        jaxpr = jax.make_jaxpr(jax.grad(function))(x)
        return sum(e.primitive.name == "liger_forward" for e in primitives(jaxpr.jaxpr))

    names = jax.checkpoint_policies.save_only_these_names
    assert forward_passes(names("liger_rms_norm_rstd")) == 1
    assert forward_passes(names("another")) == 2


def test_scan_of_layers() -> None:
    x, scale = jax_cases.named("rms_norm").make(np.random.default_rng(0), jnp.float32)
    scales = jnp.stack([scale, scale + 1, scale - 1])

    def loss(function: Any, x: Any, scales: Any) -> Any:
        return jnp.sum(jax.lax.scan(lambda c, s: (c + function(c, s), None), x, scales)[0] ** 2)

    ours = jax.grad(lambda *a: loss(liger_jax.rms_norm, *a), (0, 1))(x, scales)
    close(ours, jax.grad(lambda *a: loss(jax_cases.plain_rms_norm, *a), (0, 1))(x, scales), 1e-5)


def test_xla_has_a_second_derivative_and_the_kernels_refuse_one() -> None:
    x = jnp.array([[1.0, 2.0, -0.5]])

    def hessian_vector(function: Any) -> Any:
        first = jax.grad(lambda x: jnp.sum(function(x) ** 3))
        return jax.grad(lambda x: jnp.sum(first(x) * jnp.array([[1.0, -1.0, 2.0]])))(x)

    ours = hessian_vector(functools.partial(liger_jax.rms_norm, implementation="xla"))
    close(ours, hessian_vector(lambda x: jax_cases.plain_rms_norm(x, None)), 1e-5)
    with pytest.raises(NotImplementedError, match="rms_norm: its kernels have a first derivative"):
        hessian_vector(liger_jax.rms_norm)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(liger_jax.rms_norm, (x,), (x,))


def test_rope_of_other_shapes() -> None:
    q, k, cos, sin = jax_cases.named("rope").make(np.random.default_rng(0), jnp.float32)
    expected = jax_cases.plain_rope(q, k, cos, sin)
    close(liger_jax.apply_rope(q[0], k[0], cos[0], sin[0]), jax.tree.map(lambda a: a[0], expected))
    close(liger_jax.apply_rope(q[None], k[None], cos, sin), jax.tree.map(lambda a: a[None], expected))
    swap = lambda a: a.swapaxes(1, 2)  # noqa: E731
    close(liger_jax.apply_rope(swap(q), swap(k), cos, sin, heads_axis=-3), jax.tree.map(swap, expected))
    own = jnp.concatenate([cos, -cos]), jnp.concatenate([sin, sin])
    close(liger_jax.apply_rope(q, k, *own), jax_cases.plain_rope(q, k, *own))


def test_all_labels_ignored() -> None:
    logits = jnp.ones((4, 9))
    labels = jnp.full(4, -100)
    loss = functools.partial(
        liger_jax.softmax_cross_entropy_with_integer_labels, labels=labels, reduction="mean", z_loss=0.1
    )
    value, gradient = jax.value_and_grad(loss)(logits)
    assert value == 0
    assert not gradient.any()


def test_kernel_layouts_agree() -> None:
    x, kernel, labels = jax_cases.named("linear_cross_entropy-none").make(
        np.random.default_rng(0), jnp.float32
    )
    hv = liger_jax.linear_softmax_cross_entropy(x, kernel, labels)
    close(liger_jax.linear_softmax_cross_entropy(x, kernel.T, labels, kernel_layout="vh"), hv)


def test_float64_is_left_to_xla() -> None:
    with jax.enable_x64(True):
        x = jnp.ones((2, 8), jnp.float64)
        assert liger_jax.rms_norm(x).dtype == jnp.float64
        with pytest.raises(TypeError, match="x has dtype float64, and the kernels compute in float32"):
            liger_jax.rms_norm(x, implementation="triton")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: liger_jax.rms_norm(jnp.ones((2, 8)), jnp.ones(7)),
            ValueError,
            r"rms_norm: scale has shape \(7,\)",
        ),
        (lambda: liger_jax.rms_norm(jnp.ones((2, 8), jnp.int32)), TypeError, "x has dtype int32"),
        (lambda: liger_jax.rms_norm(jnp.ones((2, 8)), casting="bf16"), ValueError, "casting is 'bf16'"),
        (lambda: liger_jax.rms_norm(jnp.ones((2, 8)), epsilon=-1.0), ValueError, "rms_norm: epsilon is -1.0"),
        (
            lambda: liger_jax.rms_norm(jnp.ones((2, 8)), epsilon=True),
            TypeError,
            "epsilon is True; it must be a number",
        ),
        (
            lambda: liger_jax.group_norm(jnp.ones((2, 8)), num_groups=2.9),  # type: ignore[arg-type]
            TypeError,
            r"num_groups is 2\.9; it must be an integer",
        ),
        (
            lambda: jax.jit(lambda n: liger_jax.group_norm(jnp.ones((2, 8)), num_groups=n))(2),
            TypeError,
            "num_groups is traced by JAX.*static_argnames",
        ),
        *(
            (
                lambda n=n: liger_jax.map_logits(jnp.sum, jnp.ones((2, 8)), jnp.ones((8, 9)), chunk_bytes=n),
                error,
                f"chunk_bytes is {n}; it must be",
            )
            for n, error in ((-5, ValueError), (0, ValueError), (2.5, TypeError))
        ),
        (lambda: liger_jax.rms_norm(None), TypeError, "rms_norm: x is None; it must be an array"),
        (
            lambda: liger_jax.rms_norm(jnp.ones(8), epsilon=None),
            TypeError,
            "epsilon is None; it must be a number",
        ),
        (
            lambda: jax.jit(lambda t: liger_jax.token_logprobs(jnp.ones(8), jnp.int32(0), temperature=t))(
                0.7
            ),
            TypeError,
            "temperature is traced by JAX.*static_argnames",
        ),
        (
            lambda: liger_jax.geglu(jnp.ones((2, 8)), approximate="none"),
            ValueError,
            "geglu: approximate is 'none'; choose True",
        ),
        (
            lambda: liger_jax.rms_norm(jnp.ones((2, 8)), implementation="cuda"),
            ValueError,
            "implementation is 'cuda'",
        ),
        (
            lambda: liger_jax.add_rms_norm(jnp.ones((2, 8)), jnp.ones((2, 7))),
            ValueError,
            "residual has shape",
        ),
        (lambda: liger_jax.swiglu(jnp.ones((2, 7))), ValueError, "even last axis"),
        (
            lambda: liger_jax.apply_rope(*[jnp.ones((1, 2, 3, 4))] * 2, *[jnp.ones((5, 4))] * 2),
            ValueError,
            "cos has shape",
        ),
        (
            lambda: liger_jax.apply_rope(
                *[jnp.ones((1, 2, 3, 4))] * 2, *[jnp.ones((2, 4))] * 2, heads_axis=1
            ),
            ValueError,
            "heads_axis is 1",
        ),
        (
            lambda: liger_jax.softmax_cross_entropy_with_integer_labels(jnp.ones((2, 8)), jnp.ones(2)),
            TypeError,
            "labels has dtype float32",
        ),
        (
            lambda: liger_jax.softmax_cross_entropy_with_integer_labels(
                jnp.ones((2, 8)), jnp.zeros(2, jnp.int32), where=jnp.ones(3, bool)
            ),
            ValueError,
            r"^cross_entropy: where is bool\[3\]",
        ),
        (
            lambda: liger_jax.linear_softmax_cross_entropy(
                jnp.ones((2, 8)), jnp.ones((9, 8)), jnp.zeros(2, jnp.int32)
            ),
            ValueError,
            r"kernel has shape \(9, 8\)",
        ),
        (
            lambda: liger_jax.linear_softmax_cross_entropy(
                jnp.ones((2, 8)), jnp.ones((8, 9), jnp.bfloat16), jnp.zeros(2, jnp.int32)
            ),
            TypeError,
            "kernel has dtype bfloat16 but x has float32",
        ),
        (
            lambda: liger_jax.linear_softmax_cross_entropy(
                jnp.ones((2, 8)), jnp.ones((8, 9)), jnp.zeros(2, jnp.int32), kernel_layout="VH"
            ),
            ValueError,
            "linear_cross_entropy: kernel_layout is 'VH'",
        ),
        (
            lambda: liger_jax.linear_softmax_cross_entropy(
                jnp.ones((2, 8)), jnp.ones((8, 9)), jnp.zeros(2, jnp.int32), class_weights=jnp.ones(8)
            ),
            ValueError,
            r"linear_cross_entropy: class_weights has shape \(8,\); expected \(9,\)",
        ),
        (
            lambda: liger_jax.softmax_cross_entropy_with_integer_labels(
                jnp.ones((2, 8)), jnp.zeros(2, jnp.int32), class_weights=jnp.ones(7)
            ),
            ValueError,
            r"cross_entropy: class_weights has shape \(7,\); expected \(8,\) \(one weight per class\)",
        ),
        (
            lambda: liger_jax.softmax_cross_entropy_with_integer_labels(
                jnp.ones((2, 8)), jnp.zeros(2, jnp.int32), z_loss=-1.0
            ),
            ValueError,
            "cross_entropy: z_loss is -1.0",
        ),
        (
            lambda: liger_jax.softmax_cross_entropy_with_integer_labels(jnp.ones(8), jnp.zeros(1, jnp.int32)),
            ValueError,
            r"cross_entropy: labels has shape \(1,\); expected \(\)",
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_table_that_is_differentiated_is_refused() -> None:
    q, k, cos, sin = jax_cases.named("rope").make(np.random.default_rng(0), jnp.float32)
    for implementation in ("triton", "xla"):
        loss = lambda cos: jnp.sum(liger_jax.apply_rope(q, k, cos, sin, implementation=implementation)[0])  # noqa: B023, E731
        with pytest.raises(ValueError, match=r"cos is differentiated.*stop_gradient\(cos\)"):
            jax.grad(loss)(cos)


@pytest.mark.parametrize("implementation", ["triton", "xla"])
def test_class_weights_that_are_differentiated_are_refused(implementation: str) -> None:
    x, kernel, labels = jax_cases.named("linear_cross_entropy-none").make(
        np.random.default_rng(0), jnp.float32
    )
    losses: tuple[Any, ...] = (
        functools.partial(liger_jax.softmax_cross_entropy_with_integer_labels, x @ kernel, labels),
        functools.partial(liger_jax.linear_softmax_cross_entropy, x, kernel, labels),
    )
    for loss in losses:
        with pytest.raises(
            ValueError, match=r"class_weights is differentiated.*stop_gradient\(class_weights\)"
        ):
            jax.grad(lambda w: loss(class_weights=w, implementation=implementation).sum())(jnp.ones(70))  # noqa: B023


def test_eager_calls_of_a_vmap_are_compiled_once() -> None:
    """Also where the examples are run one after the other."""
    per_example = jax.vmap(jax.grad(lambda scale, x: liger_jax.rms_norm(x, scale).sum()))
    x, scale = jnp.ones((3, 2, 8)), jnp.ones((3, 8))
    per_example(scale, x)
    before = batching._loop.cache_info()
    for _ in range(2):
        per_example(scale, x)
    after = batching._loop.cache_info()
    assert after.misses == before.misses and after.hits > before.hits


def test_one_token_without_an_axis() -> None:
    jax_cases.check_one_token(close)


@pytest.mark.parametrize("name", ["rms_norm", "linear_cross_entropy"])
def test_without_jit(name: str) -> None:
    """An op of kernels alone, and one with products and a loop in it."""
    case = jax_cases.named(name)
    with jax.disable_jit():
        ours = jax_cases.gradients(case.ours, case, *inputs(case))
    close(ours, expected(case))


def test_another_implementation_is_preferred_by_the_name_of_the_op() -> None:
    def kernels_of() -> set[str]:
        jaxpr = jax.make_jaxpr(lambda x: liger_jax.swiglu(liger_jax.rms_norm(x), x))(jnp.ones((2, 8)))
        return set(re.findall(r"call=Call\(op=Op\(name='(\w+)'", str(jaxpr)))

    before = {op for op in ("rms_norm", "swiglu") if implementations.DEFAULTS[op] == "triton"}
    assert kernels_of() == before
    with liger_jax.preferring(rms_norm="xla"):
        assert kernels_of() == before - {"rms_norm"}
        with liger_jax.preferring(swiglu="triton"):
            assert kernels_of() == {"swiglu"}
    assert kernels_of() == before
    for wrong, message in (
        ({"norm": "xla"}, "norm is no op"),
        ({"swiglu": "cuda"}, "swiglu: implementation is 'cuda'"),
    ):
        with pytest.raises(ValueError, match=message), liger_jax.preferring(**wrong):
            pass
