"""What the torch frontend promises for every op, on the kernels; what is particular to one op is tested elsewhere.

Each test runs over the cases that stand for the ops: one that lands with its cases is covered by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Sequence

import pytest
import torch
from cases import REPRESENTATIVES, SIGNATURES, Case, with_tokens
from layouts import LAYOUTS, laid_out
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint
from torch_runner import (
    bound,
    check_against_float64,
    cotangents,
    differentiate,
    error,
    grad,
    run,
    run_reference,
    tensors,
)

from liger import interpret
from liger.device import DEFAULT
from liger.launch import Launch, Spec
from liger.op import Op
from liger_torch import backend as torch_backend
from liger_torch import library
from liger_torch.autograd import call, needed
from liger_torch.backend import TorchBackend
from liger_torch.functional import liger_rms_norm
from liger_triton.ops import OPS

each_op = pytest.mark.parametrize("case", REPRESENTATIVES, ids=lambda c: c.name)
each_signature = pytest.mark.parametrize("case", SIGNATURES, ids=lambda c: c.name)
"""For what torch.compile and operators see: operands and outputs. Options are constants to them."""
differentiable = pytest.mark.parametrize(
    "case", [case for case in REPRESENTATIVES if any(case.needs())], ids=lambda c: c.name
)
"""Not over products of integers."""

Tensors = list[torch.Tensor | None]


def forward_and_backward(case: Case, given: Tensors) -> tuple[Tensors, Tensors]:
    outputs = list(call(case.op, case.options, *given))
    return outputs, differentiate(case, "float32", given, outputs)


@functools.cache
def once(case: Case, dtype: str = "float32") -> tuple[Tensors, Tensors]:
    """Outputs and gradients of the plain call, computed once for the tests that compare others with them."""
    return run(case, dtype)


def wider(given: Tensors) -> Tensors:
    """The same values in float64, as leaves."""
    return [
        t.detach().double().requires_grad_(t.requires_grad) if t is not None and t.is_floating_point() else t
        for t in given
    ]


def assert_equal(
    found: tuple[Tensors, Tensors], expected: tuple[Tensors, Tensors], *, products: bool = False
) -> None:
    """To the bit; with `products`, but for the order in which a library sums those of matrices."""
    for a, b in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert error(a, b) <= 1e-6 if products else torch.equal(a, b)


def test_every_op_has_a_case() -> None:
    assert {case.op.name for case in REPRESENTATIVES} == {op.name for op in OPS}


# ------------------------------------------------------------------------------------------------ autograd


class Work:
    """What an op has computed: bytes and operations of its launches, operations of its matrix products."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.amount = 0
        run, matmul = interpret.run, TorchBackend.matmul

        def counted_run(launch: Launch, inputs: Sequence[int], outputs: Sequence[int]) -> None:
            self.amount += launch.traffic + launch.flops
            run(launch, inputs, outputs)

        def counted_matmul(
            backend: TorchBackend, a: torch.Tensor, b: torch.Tensor, **options: object
        ) -> object:
            self.amount += 2 * a.shape[0] * a.shape[1] * b.shape[1]
            return matmul(backend, a, b, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(interpret, "run", counted_run)
        monkeypatch.setattr(TorchBackend, "matmul", counted_matmul)

    def take(self) -> int:
        amount, self.amount = self.amount, 0
        return amount


@each_op
def test_every_combination_of_requires_grad(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gradient depends on its own operand's requires_grad, is the same whatever the others ask for, and costs."""
    _, full = once(case)
    work = Work(monkeypatch)
    positions = [i for i, need in enumerate(case.needs()) if need]
    amounts: dict[frozenset[int], int] = {}
    for chosen in map(frozenset, _subsets(positions)):
        given = tensors(case, "float32")
        for i in positions:
            given[i].requires_grad_(i in chosen)  # type: ignore[union-attr]
        outputs = list(call(case.op, case.options, *given))
        gradients: Tensors = [None] * len(given)
        if chosen:
            gradients = differentiate(case, "float32", given, outputs)
        else:
            assert not any(o is not None and o.requires_grad for o in outputs)
        amounts[chosen] = work.take()
        for i, gradient in enumerate(gradients):
            assert (gradient is not None) == (i in chosen)
            if gradient is not None:
                assert torch.equal(gradient, full[i])  # type: ignore[arg-type]
    for chosen, amount in amounts.items():
        for i in chosen:
            assert amounts[chosen - {i}] <= amount, (
                "an operand that needs no gradient costs more than one that does"
            )
        assert amounts[frozenset()] < amount or not chosen, "gradients are computed although none is needed"


def _subsets(positions: list[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(
        itertools.combinations(positions, n) for n in range(len(positions) + 1)
    )


@each_op
def test_no_grad_computes_no_gradient(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    call(case.op, case.options, *(None if t is None else t.detach() for t in tensors(case, "float32")))
    least = work.take()
    with torch.no_grad():
        outputs = call(case.op, case.options, *tensors(case, "float32"))
    assert work.take() == least
    assert not any(o is not None and o.requires_grad for o in outputs)


@differentiable
def test_second_backward_is_right_or_refused(case: Case) -> None:
    given = tensors(case, "float32")
    outputs = [o for o in call(case.op, case.options, *given) if o is not None and o.requires_grad]
    wanted = [t for t in given if t is not None and t.requires_grad]
    incoming = [torch.full_like(o, 0.5) for o in outputs]
    first = torch.autograd.grad(outputs, wanted, incoming, retain_graph=True)
    first = [g.clone() for g in first]
    if case.op.backward_once(case.options, needed(case.op, tuple(given))):
        with pytest.raises(RuntimeError, match=r'second backward pass.*reduction="none"'):
            torch.autograd.grad(outputs, wanted, incoming)
    else:
        for a, b in zip(first, torch.autograd.grad(outputs, wanted, incoming), strict=True):
            assert torch.equal(a, b)


@differentiable
def test_activation_checkpointing_changes_nothing(case: Case) -> None:
    """The forward pass runs a second time in the backward pass, on saved tensors that are packed and unpacked."""
    expected = once(case)
    given = tensors(case, "float32")
    outputs = checkpoint(
        lambda *operands: call(case.op, case.options, *operands), *given, use_reentrant=False
    )
    assert_equal((list(outputs), differentiate(case, "float32", given, outputs)), expected)


@each_op
def test_inference_mode(case: Case) -> None:
    expected, _ = once(case)
    with torch.inference_mode():
        found = call(case.op, case.options, *tensors(case, "float32"))
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)  # type: ignore[arg-type]


@differentiable
def test_a_second_derivative_is_refused(case: Case) -> None:
    """Where the incoming gradients have none too, as a loss's: torch's `once_differentiable` says nothing there."""
    given = tensors(case, "float32")
    for incoming, outputs in _with_incoming(call(case.op, case.options, *given)):
        with pytest.raises(RuntimeError, match=f"^{case.op.name}: create_graph=True, but its gradients have"):
            torch.autograd.grad(outputs, _wanted(given), incoming, create_graph=True)
    if not case.op.backward_once(case.options, needed(case.op, tuple(given))):
        torch.autograd.grad(outputs, _wanted(given), incoming)  # nothing is spent by a refusal


LINEAR = {"rope", "rope_at_positions", "mrope"}
"""Ops whose gradients depend on the incoming ones alone."""


@differentiable
def test_a_second_derivative_of_its_operator_is_refused(case: Case) -> None:
    """As of a graph that torch.compile made, where gradients are computed before anybody asks for theirs."""
    given = tensors(case, "float32")
    results = library.call(case.op, case.options, tuple(given), needed(case.op, tuple(given)))
    for incoming, outputs in _with_incoming(results):
        gradients = torch.autograd.grad(outputs, _wanted(given), incoming, create_graph=True)
        # What the gradients depend on.
        sources = [incoming] if incoming[0].requires_grad else []
        if case.op.name not in LINEAR:
            sources.append(_wanted(given))
        assert all(g.requires_grad for g in gradients) == bool(sources)
        for at in sources:
            with pytest.raises(
                RuntimeError, match=f"^{case.op.name}: create_graph=True, but its gradients have"
            ):
                torch.autograd.grad(
                    sum(g.square().sum() for g in gradients), at, allow_unused=True, retain_graph=True
                )


def _wanted(given: Tensors) -> list[torch.Tensor]:
    return [t for t in given if t is not None and t.requires_grad]


def _with_incoming(
    results: Sequence[torch.Tensor | None],
) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Incoming gradients that require one, and that do not, with the outputs that they are of."""
    outputs = [o for o in results if o is not None and o.requires_grad]
    for requires_grad in (True, False):
        yield [torch.full_like(o, 0.5, requires_grad=requires_grad) for o in outputs], outputs


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "case", {c.op.name: c for c in REPRESENTATIVES if any(c.needs())}.values(), ids=lambda c: c.op.name
)
def test_forward_mode_and_transforms_are_refused(case: Case, trained: bool) -> None:
    """Without operands that require a gradient too, where no autograd function takes part; constants may pass."""
    given = [
        None if t is None else t.detach().requires_grad_(trained and t.requires_grad)
        for t in tensors(case, "float32")
    ]
    place = case.needs().index(True)
    at = given[place]
    assert at is not None

    def of(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = call(case.op, case.options, *given[:place], tensor, *given[place + 1 :])
        return tuple(
            r for r, o in zip(results, case.op.outputs, strict=True) if r is not None and o.differentiable
        )

    expected = of(at)
    mode = f"^{case.op.name}: forward-mode differentiation"
    with forward_ad.dual_level():
        for a, b in zip(of(at), expected, strict=True):
            assert torch.equal(a, b)
        with pytest.raises(RuntimeError, match=mode):
            of(forward_ad.make_dual(at, torch.ones_like(at)))
    for transformed in (
        lambda: torch.func.jvp(of, (at,), (torch.ones_like(at),)),
        lambda: torch.func.jacrev(of)(at),
        lambda: torch.func.vmap(of)(at[None]),
    ):
        with pytest.raises(RuntimeError, match=f"^{case.op.name}: transforms of torch.func"):
            transformed()


def test_forward_mode_through_a_compiled_function_is_refused() -> None:
    x = torch.randn(3, 8)
    compiled = torch.compile(lambda x: liger_rms_norm(x, None), backend="aot_eager", fullgraph=True)
    compiled(x)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="rms_norm: forward-mode differentiation"):
        compiled(forward_ad.make_dual(x, x))


@each_op
def test_only_some_outputs_used(case: Case) -> None:
    """What is not used has no cotangent: the gradients are those of the others, or none."""
    for i, declared in enumerate(case.op.outputs):
        given = tensors(case, "float32")
        used = call(case.op, case.options, *given)[i]
        if used is None or not declared.differentiable:
            continue
        wide = wider(given)
        reference = case.op.reference(tuple(wide), case.options)[i]
        found, exact = (
            torch.autograd.grad(
                output,
                [t for t in operands if t is not None and t.requires_grad],
                torch.ones_like(output),
                allow_unused=True,
            )
            for output, operands in ((used, given), (reference, wide))
        )
        for a, b in zip(found, exact, strict=True):
            if a is None or b is None:
                assert not any(g is not None and g.any() for g in (a, b))
            else:
                # Beside the sum of magnitudes: a sum of such cotangents may be 0 but for rounding.
                assert error(a, b) <= bound(case, "float32") or (a - b).norm() <= 1e-5 * a.numel() ** 0.5


# ------------------------------------------------------------------------------------------ torch.compile


@each_signature
def test_opcheck(case: Case) -> None:
    given = tuple(tensors(case, "float32"))
    needs = needed(case.op, given)
    packet = getattr(torch.ops.liger, case.op.name).default
    opcheck(packet, (*given, *library._values(case.options), list(needs)))


@each_signature
def test_outputs_have_gradients_as_declared(case: Case) -> None:
    """Where torch compiles as elsewhere: an accuracy that is logged holds on to no graph."""
    given = tuple(tensors(case, "float32"))
    needs = needed(case.op, given)
    eager = call(case.op, case.options, *given)
    for outputs in (eager, library.call(case.op, case.options, given, needs)):
        for output, declared in zip(outputs, case.op.outputs, strict=True):
            if output is not None:
                assert output.requires_grad == (declared.differentiable and any(needs)), declared.name


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_arguments_of_an_operator_have_names_of_their_own(op: Op) -> None:
    """Torch takes a schema that names two arguments alike; Inductor does not."""
    for name in (op.name, f"{op.name}_backward"):
        names = [a.name for a in getattr(torch.ops.liger, name).default._schema.arguments]
        assert len(set(names)) == len(names)


@each_signature
def test_compiles_whole_and_once_for_all_token_counts(case: Case) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(*given: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return call(case.op, case.options, *given)

    def run_compiled(count: int) -> None:
        other = with_tokens(case, count)
        given = tensors(other, "float32")
        outputs = list(compiled(*given))
        found = outputs, differentiate(other, "float32", given, outputs)
        expected = forward_and_backward(other, tensors(other, "float32"))
        assert_equal(found, expected, products=not case.kernels_alone)

    run_compiled(5)
    with torch.compiler.set_stance("fail_on_recompile"):
        run_compiled(12)


# ------------------------------------------------------------------------------------- layouts and devices


@pytest.mark.parametrize("layout", LAYOUTS)
@each_op
def test_any_layout_gives_the_same_and_stays_as_it_was(case: Case, layout: str) -> None:
    """Strided operands and incoming gradients: the same bits as dense ones, and nothing is written to."""
    expected = once(case)
    given = [laid_out(t, layout) for t in tensors(case, "float32")]
    outputs = list(call(case.op, case.options, *given))
    dense_incoming = cotangents(case, "float32", outputs)
    used = [i for i, c in enumerate(dense_incoming) if c is not None]
    incoming = [LAYOUTS[layout](dense_incoming[i]) for i in used]  # type: ignore[arg-type]
    arrays = [t for t in (*given, *incoming) if t is not None]
    versions = [t._version for t in arrays]
    copies = [t.detach().clone() for t in arrays]
    wanted = [t for t in given if t is not None and t.requires_grad]
    gradients = iter(grad([outputs[i] for i in used], wanted, incoming))  # type: ignore[arg-type]
    found = [next(gradients) if t is not None and t.requires_grad else None for t in given]
    assert_equal((outputs, found), expected, products=not case.kernels_alone)
    assert [t._version for t in arrays] == versions
    assert all(torch.equal(t, copy) for t, copy in zip(arrays, copies, strict=True))


@each_op
def test_one_token_expanded_to_many(case: Case) -> None:
    """Operands without memory of their own (stride 0), as an expanded mask, table or incoming gradient has."""
    one = with_tokens(case, 1)
    many = with_tokens(one, 3)

    def expanded(t: torch.Tensor | None, full: torch.Tensor | None) -> torch.Tensor | None:
        return (
            None
            if t is None or full is None
            else t.detach().expand(full.shape).requires_grad_(full.requires_grad)
        )

    dense = tensors(many, "float32")
    given = [expanded(t, full) for t, full in zip(tensors(one, "float32"), dense, strict=True)]
    assert_equal(forward_and_backward(many, given), forward_and_backward(many, dense))


@each_op
def test_meta_tensors_plan_everything_and_nothing_is_read(case: Case) -> None:
    """No value is waited for: a read of one would fail. Nothing is made on a device other than the operands' own."""
    given = [
        None if t is None else t.detach().to("meta").requires_grad_(t.requires_grad)
        for t in tensors(case, "bfloat16")
    ]
    outputs = list(call(case.op, case.options, *given))
    used = [o for o in outputs if o is not None and o.requires_grad]
    wanted = [t for t in given if t is not None and t.requires_grad]
    gradients = grad(used, wanted, [torch.empty_like(o) for o in used])
    assert all(t.is_meta for t in (*outputs, *gradients) if t is not None)
    real, expected = once(case, "bfloat16")
    assert [None if o is None else (o.shape, o.dtype) for o in outputs] == [
        None if o is None else (o.shape, o.dtype) for o in real
    ]
    assert [(g.shape, g.dtype) for g in gradients] == [(g.shape, g.dtype) for g in expected if g is not None]


def test_kernels_are_launched_on_the_tensors_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with several GPUs the current device is often another one."""
    entered: list[int] = []
    launched_on: list[list[int]] = []

    class Guard:
        def __init__(self, device: torch.device) -> None:
            self.index = device.index

        def __enter__(self) -> None:
            entered.append(self.index)

        def __exit__(self, *_: object) -> None:
            entered.pop()

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            return lambda *_, **__: launched_on.append(list(entered))

    monkeypatch.setattr(torch_backend, "_cuda_device", lambda index: DEFAULT)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", Guard)
    launch = Launch(Kernel(), (1,), (), (Spec((3,), "float32"),))
    with FakeTensorMode():
        for index in (1, 0):
            (out,) = TorchBackend(torch.device("cuda", index)).launch(launch)
            assert out.device == torch.device("cuda", index)
    assert launched_on == [[1], []]


# -------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_op
def test_autocast_changes_nothing(case: Case, dtype: str) -> None:
    """The kernels compute in float32 whatever they are given; functions with a product in them cast beforehand."""
    expected = once(case, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(case, dtype)
    assert_equal(found, expected)  # type: ignore[arg-type]


@each_op
def test_mixed_dtypes_are_right_or_refused(case: Case) -> None:
    """One operand in float32 beside others in bfloat16."""
    refusal = rf"{case.op.name}: \w+ has dtype \w+ but \w+ has \w+; cast one to the other's"
    for operand, tensor in zip(case.op.operands, tensors(case, "bfloat16"), strict=True):
        if tensor is None or tensor.dtype != torch.bfloat16:
            continue
        mixed = dataclasses.replace(case, keep_dtype=(*case.keep_dtype, operand.name))
        try:
            found = run(mixed, "bfloat16")
        except TypeError as error:
            assert re.match(refusal, str(error))
            continue
        check_against_float64(mixed, "bfloat16", found, run_reference(mixed, "bfloat16"))


@differentiable
def test_float64_is_refused_by_the_kernels(case: Case) -> None:
    with pytest.raises(TypeError, match=rf"{case.op.name}: .*float64.*cast"):
        call(case.op, case.options, *wider(tensors(case, "float32")))
