"""Bytes that generated code allocates, read off wrappers written by hand in Inductor's style."""

from __future__ import annotations

import pytest
import sympy
import torch

from satcompile.compile.allocation import (
    GeneratedGraph,
    ScalarSpec,
    TensorSpec,
    UnreadableCode,
    storage_elements,
    walk_step,
)
from satcompile.planner.workspace import Zeros, workspace_bytes

HEADER = """
from ctypes import c_void_p, c_long, c_int
import torch
from math import inf, nan
from torch import device, empty_strided
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.select_algorithm import extern_kernels

aten = torch.ops.aten
inductor_ops = torch.ops.inductor
assert_size_stride = torch._C._dynamo.guards.assert_size_stride
empty_strided_cpu = torch._C._dynamo.guards._empty_strided_cpu
reinterpret_tensor = torch._C._dynamo.guards._reinterpret_tensor
async_compile = AsyncCompile()

cpp_fused_relu_0 = async_compile.cpp_pybinding(['float*'], '''
void kernel(float* in_out_ptr0) {}
''')

async_compile.wait(globals())
del async_compile

class Runner:
    def __init__(self, partitions):
        self.partitions = partitions

    def call(self, args):
"""
FOOTER = """
runner = Runner(partitions=[])
call = runner.call
recursively_apply_fns = runner.recursively_apply_fns
"""


def wrapper(body: str) -> str:
    """A module of Inductor's with ``body`` in its ``call``."""
    lines = [line.strip() for line in body.strip().splitlines()]
    return HEADER + "".join(f"        {line}\n" for line in lines) + FOOTER


def tensor(name: str, *shape: int) -> TensorSpec:
    strides = torch.empty(shape, device="meta").stride()
    return TensorSpec(name, shape, strides, torch.float32, (*shape, *strides))


def walked(body: str, *inputs: object, outputs: tuple[str, ...] = ("buf",)):
    graph = GeneratedGraph(wrapper(body), inputs, outputs)
    return walk_step(graph.at_hints(), None, num_outputs=len(outputs))


def peak_and_end(body: str, *inputs: object) -> tuple[int, int]:
    forward, _ = walked(body, *inputs).profiles()
    return forward.peak_bytes, forward.end_bytes


X = tensor("primals_1", 4, 16)  # 256 bytes


def test_buffers_count_from_their_allocation_to_their_end():
    body = """
    primals_1, = args
    args.clear()
    buf0 = empty_strided_cpu((4, 16), (16, 1), torch.float32)
    buf1 = empty_strided_cpu((4, 16), (16, 1), torch.float64)
    del buf0
    buf2 = empty_strided_cpu((10, ), (1, ), torch.int8)
    return (buf2, )
    """
    assert peak_and_end(body, X) == (256 + 512, 10)


def test_a_reused_buffer_is_one_buffer():
    body = """
    primals_1, = args
    args.clear()
    buf0 = empty_strided_cpu((4, 16), (16, 1), torch.float32)
    cpp_fused_relu_0(primals_1, buf0)
    buf1 = buf0; del buf0  # reuse
    cpp_fused_relu_0(buf1)
    buf2 = reinterpret_tensor(buf1, (16, 4), (1, 16), 0); del buf1  # reuse
    return (buf2, )
    """
    assert peak_and_end(body, X) == (256, 256)


def test_a_view_keeps_its_whole_buffer_alive():
    body = """
    primals_1, = args
    args.clear()
    buf0 = empty_strided_cpu((4, 16), (16, 1), torch.float32)
    buf1 = reinterpret_tensor(buf0, (2, ), (1, ), 8)
    del buf0
    buf2 = empty_strided_cpu((4, 16), (16, 1), torch.float32)
    return (buf1, )
    """
    assert peak_and_end(body, X) == (512, 256)


def test_strides_beyond_the_elements_count_as_memory():
    # Two rows 100 elements apart: 100 + 16 elements; a broadcast row is there once.
    body = """
    primals_1, = args
    args.clear()
    buf0 = empty_strided_cpu((2, 16), (100, 1), torch.float32)
    buf1 = empty_strided_cpu((2, 16), (0, 1), torch.float32)
    return (buf0, )
    """
    assert peak_and_end(body, X) == (116 * 4 + 16 * 4, 116 * 4)


def test_an_extern_kernel_with_out_allocates_nothing():
    body = """
    primals_1, primals_2 = args
    args.clear()
    buf0 = empty_strided_cpu((4, 8), (8, 1), torch.float32)
    extern_kernels.mm(primals_1, reinterpret_tensor(primals_2, (16, 8), (1, 16), 0), out=buf0)
    del primals_1
    return (buf0, )
    """
    assert peak_and_end(body, X, tensor("primals_2", 8, 16)) == (128, 128)


def test_an_operator_without_out_allocates_its_results():
    body = """
    primals_1, = args
    args.clear()
    buf0 = torch.ops.aten.sort.stable(primals_1, stable=False, dim=1, descending=False)
    buf1 = buf0[0]
    assert_size_stride(buf1, (4, 16), (16, 1), 'torch.ops.aten.sort.default')
    buf2 = buf0[1]
    del buf0
    del buf1
    return (buf2, )
    """
    x = Zeros((4, 16), (16, 1), torch.float32)
    options = {"stable": False, "dim": 1, "descending": False}
    own = workspace_bytes(torch.ops.aten.sort.stable, (x,), options)
    assert peak_and_end(body, X) == (256 + 512 + own, 512)  # indices are int64


def test_an_operator_that_returns_a_view_allocates_nothing():
    body = """
    primals_1, = args
    args.clear()
    buf0 = empty_strided_cpu((4, 16), (16, 1), torch.float32)
    buf1 = torch.ops.aten.select.int(buf0, 0, 1)
    del buf0
    return (buf1, )
    """
    assert peak_and_end(body, X) == (256, 256)


def test_short_names_of_operators_are_followed_too():
    body = """
    primals_1, = args
    args.clear()
    buf0 = aten.cumsum.default(primals_1, 0)
    return (buf0, )
    """
    assert peak_and_end(body, X) == (256, 256)


def test_inputs_are_not_allocated_by_the_step_even_where_they_are_returned():
    body = """
    primals_1, = args
    args.clear()
    return (primals_1, )
    """
    assert peak_and_end(body, X) == (0, 0)


def test_nothing_but_symbolic_arithmetic_is_read_from_numbers():
    body = """
    s0, primals_1 = args
    args.clear()
    buf0 = empty_strided_cpu((s0, 2*s0), (2*s0, 1), torch.float32)
    return (buf0, )
    """
    s0 = sympy.Symbol("s0")
    spec = TensorSpec("primals_1", (s0, 4), (4, 1), torch.float32, (3, 4, 4, 1))
    graph = GeneratedGraph(wrapper(body), [ScalarSpec(s0, 3), spec], ("buf0",))

    def peak(concrete: GeneratedGraph) -> int:
        return walk_step(concrete, None, 1).profiles()[0].peak_bytes

    assert peak(graph.at_hints()) == 3 * 6 * 4
    assert peak(graph.at_sizes({s0: 5})) == 5 * 10 * 4
    assert graph.at_sizes({s0: 5}).inputs[1].shape == (5, 4)


# -- a whole step ----------------------------------------------------------------------------

FORWARD = """
primals_1, primals_2 = args
args.clear()
buf0 = empty_strided_cpu((4, 16), (16, 1), torch.float32)
extern_kernels.mm(primals_2, primals_1, out=buf0)
buf1 = empty_strided_cpu((4, 16), (16, 1), torch.float32)
cpp_fused_relu_0(buf0, buf1)
buf2 = empty_strided_cpu((), (), torch.float32)
cpp_fused_relu_0(buf1, buf2)
del buf1
return (buf2, primals_2, buf0, )
"""
BACKWARD = """
primals_2, mm, tangents_1 = args
args.clear()
buf0 = empty_strided_cpu((4, 16), (16, 1), torch.float32)
cpp_fused_relu_0(mm, tangents_1, buf0)
del mm
del tangents_1
buf1 = empty_strided_cpu((16, 16), (16, 1), torch.float32)
extern_kernels.mm(reinterpret_tensor(primals_2, (16, 4), (1, 16), 0), buf0, out=buf1)
del buf0
del primals_2
return (buf1, None, )
"""
WEIGHT, INPUT = tensor("primals_1", 16, 16), tensor("primals_2", 4, 16)
STEP = (
    GeneratedGraph(wrapper(FORWARD), [WEIGHT, INPUT], ("sum_1", "primals_2", "mm")),
    GeneratedGraph(
        wrapper(BACKWARD), [INPUT, tensor("mm", 4, 16), tensor("tangents_1")], ("mm_1", None)
    ),
)


def test_a_step_hands_over_what_the_backward_takes():
    walk = walk_step(STEP[0].at_hints(), STEP[1].at_hints(), num_outputs=1)
    forward, backward = walk.profiles()
    assert walk.saved_bytes == 256  # the product; the input is there anyway
    assert (forward.peak_bytes, forward.end_bytes) == (256 + 256 + 4, 256 + 4)
    # The incoming gradient, which backward() holds, the product and the loss; then the product gives way to the
    # gradient of the weights, while the gradient of the product is still read.
    assert backward.peak_bytes == 4 + 4 + 256 + 1024
    # The loss and its gradient, which the user and backward() hold, and the gradient.
    assert backward.end_bytes == 4 + 4 + 1024


def test_saved_values_that_the_user_holds_too_are_not_counted_as_saved():
    walk = walk_step(STEP[0].at_hints(), STEP[1].at_hints(), num_outputs=3)
    assert walk.saved_bytes == 0


def test_updated_buffers_are_gone_before_the_backward():
    held = walk_step(*(graph.at_hints() for graph in STEP), num_outputs=1)
    dropped = walk_step(*(graph.at_hints() for graph in STEP), 1, transient_outputs=[0])
    assert held.profiles()[1].end_bytes - dropped.profiles()[1].end_bytes == 4


# -- what cannot be followed -----------------------------------------------------------------


BACKWARD = """
tangents_1, = args
args.clear()
buf = empty_strided_cpu((4, 16), (16, 1), torch.float32)
del tangents_1
return (%s, )
"""


@pytest.mark.parametrize(
    ("returned", "leaves", "copied_bytes"),
    [
        ("buf", {0}, 0),
        ("reinterpret_tensor(buf, (4, 16), (1, 4), 0)", {0}, 256),
        ("reinterpret_tensor(buf, (4, 16), (1, 4), 0)", set(), 0),  # autograd hands it on
        ("buf, buf", {0, 1}, 256),
        ("buf, buf", {0}, 256),  # of the leaf alone: it comes first
    ],
    ids=["as the leaf", "turned", "no leaf", "of two leaves", "of a leaf and another"],
)
def test_autograd_copies_gradients_that_are_not_laid_out_as_their_leaf(
    returned: str, leaves: set[int], copied_bytes: int
) -> None:
    forward = GeneratedGraph(
        wrapper("primals_1, primals_2 = args\nargs.clear()\nreturn (primals_1, )"),
        (X, tensor("primals_2", 4, 16)), ("primals_1",),
    )  # fmt: skip
    backward = GeneratedGraph(
        wrapper(BACKWARD % returned),
        (tensor("tangents_1"),),
        ("g",) * (returned.count("buf, ") + 1),
    )
    walk = walk_step(forward.at_hints(), backward.at_hints(), 1, leaf_gradients=leaves)
    assert walk.peak_bytes == 4 + 256 + copied_bytes
    kept = 512 if returned == "buf, buf" and len(leaves) == 2 else 256
    assert walk.bytes_at_end("gradients") == (kept if leaves else 0)


def test_an_operator_that_refuses_zeros_is_tried_on_ones() -> None:
    """``lu_solve`` wants pivots that count from one."""
    square, pivots = Zeros((6, 6), (6, 1), torch.float64), Zeros((6,), (1,), torch.int32)
    assert (
        workspace_bytes(torch.ops.aten.linalg_lu_solve.default, (square, pivots, square), {}) >= 0
    )


def test_a_module_without_a_call_is_unreadable():
    with pytest.raises(UnreadableCode, match="Runner"):
        walk_step(GeneratedGraph("import torch\n", [], ()), None, 0)


def test_a_name_that_nothing_defines_is_unreadable_and_named():
    with pytest.raises(UnreadableCode, match="empty_strided_tpu"):
        walked("buf0 = empty_strided_tpu((4, ), (1, ), torch.float32)\nreturn (buf0, )")


def test_an_unknown_operator_is_unreadable():
    with pytest.raises(UnreadableCode, match="no_such_operator"):
        walked("buf0 = torch.ops.aten.no_such_operator.default(1)\nreturn (buf0, )")


def test_a_plain_function_call_is_followed_as_older_wrappers_have_it():
    source = """
import torch
empty_strided_cpu = torch._C._dynamo.guards._empty_strided_cpu
def call(args):
    primals_1, = args
    args.clear()
    buf0 = empty_strided_cpu((8, ), (1, ), torch.float32)
    return (buf0, )
"""
    walk = walk_step(GeneratedGraph(source, [X], ("buf0",)).at_hints(), None, 1)
    assert walk.profiles()[0].peak_bytes == 32


@pytest.mark.parametrize(
    ("shape", "strides", "elements"),
    [((), (), 1), ((4,), (1,), 4), ((2, 3), (3, 1), 6), ((2, 3), (0, 1), 3), ((2, 3), (100, 1), 103),
     ((0, 3), (3, 1), 0)],
)  # fmt: skip
def test_elements_that_strides_span(shape, strides, elements):
    assert storage_elements(shape, strides) == elements


# -- several paths, several parts --------------------------------------------------------------

BRANCHES = """
def true_graph_0(args):
    x, = args
    args.clear()
    buf0 = empty_strided_cpu((1024, ), (1, ), torch.float32)
    buf1 = empty_strided_cpu((8, ), (1, ), torch.float32)
    return (buf1, )

def false_graph_0(args):
    x, = args
    args.clear()
    return (empty_strided_cpu((8, ), (1, ), torch.float32), )
"""
BRANCH = """
primals_1, = args
args.clear()
buf0 = [None] * 1
"""


def branching(*conditions: str, body: str = "") -> GeneratedGraph:
    lines = BRANCH.strip().splitlines()
    for condition in conditions:
        lines += [f"if {condition}:", "    buf0 = true_graph_0([primals_1])"]
        lines += ["else:", "    buf0 = false_graph_0([primals_1])"]
    lines += [*body.splitlines(), "return (buf0[0], )"]
    text = "".join(f"        {line}\n" for line in lines)
    source = HEADER.replace("class Runner:", BRANCHES + "class Runner:") + text + FOOTER
    return GeneratedGraph(source, [X], ("buf0",)).at_hints()


@pytest.mark.parametrize(
    "condition", ["primals_1.item()", "not primals_1.item()", "int(primals_1.item()) == 0"]
)
def test_of_two_branches_the_one_with_the_higher_peak_counts(condition: str):
    forward, _ = walk_step(branching(condition), None, 1).profiles()
    assert forward.peak_bytes == 4096 + 32


def test_all_ways_through_several_branches_are_walked():
    once, thrice = (walk_step(branching(*["primals_1.item()"] * n), None, 1) for n in (1, 3))
    # The latest result of the first two is alive while the third runs.
    assert thrice.peak_bytes == once.peak_bytes + 32


def test_a_loop_that_ends_by_a_value_is_unreadable():
    loop = "while primals_1.item():\n    buf0 = false_graph_0([primals_1])"
    with pytest.raises(UnreadableCode, match="over 6 branches"):
        walk_step(branching(body=loop), None, 1)


def test_a_size_that_comes_from_a_value_is_unreadable():
    with pytest.raises(UnreadableCode, match="TypeError"):
        walked(
            "primals_1, = args\nargs.clear()\nu0 = primals_1.item()\n"
            "buf0 = empty_strided_cpu((u0, ), (1, ), torch.float32)\nreturn (buf0, )",
            X,
        )


@pytest.mark.parametrize("condition", ["primals_1.item() == 0.5", "primals_1.item() > 0"])
def test_a_branch_by_a_comparison_is_unreadable(condition: str):
    with pytest.raises(UnreadableCode, match=r"is compared|TypeError"):
        walk_step(branching(condition), None, 1)


PARTS = """
def partition_0(args):
    primals_1, = args
    args.clear()
    buf0 = empty_strided_cuda((100, ), (1, ), torch.float32)
    return (buf0, )

def partition_1(args):
    buf0, = args
    args.clear()
    workspace = empty_strided_cuda((3, ), (1, ), torch.uint8)
    workspace.zero_()
    workspace[0 : 1].view(1, 1).sum(dim=0)
    buf1 = copy_if_misaligned(buf0)
    assert_size_stride_grouped((buf0, buf1), ((100, ), (100, )), ((1, ), (1, )))
    assert_tensor_metadata(buf1, (100, ), (1, ), torch.float32)
    return (buf1, )
"""


def test_parts_of_a_graph_run_one_after_the_other():
    body = """
primals_1, = args
args.clear()
partition0_args = [primals_1]
del primals_1
(buf0,) = self.partitions[0](partition0_args)
partition1_args = [buf0]
del buf0
(buf1,) = self.partitions[1](partition1_args)
return (buf1, )
"""
    source = wrapper(body).replace("class Runner:", PARTS + "class Runner:")
    source = source.replace(
        "Runner(partitions=[])", "Runner(partitions=[partition_0, partition_1])"
    )
    walk = walk_step(GeneratedGraph(source, [X], ("buf1",)).at_hints(), None, 1)
    assert walk.peak_bytes == 400 + 3 + 8  # to the byte, as it is asked for
    assert walk.figures.peak_bytes == 3 * 512  # as a GPU's allocator gives it out
    assert (walk.figures.held_bytes, walk.held_bytes) == (512, 400)


@pytest.mark.parametrize(("device", "table_bytes"), [("cuda", 2 * 21 * 8), ("cpu", 0)])
def test_a_gpus_update_inside_the_backward_takes_a_table(device: str, table_bytes: int):
    """A row of 21 words for each parameter."""
    body = f"""
    primals_1, = args
    args.clear()
    buf0 = empty_strided_{device}((100, ), (1, ), torch.float32)
    torch.ops.satcompile.update_.default([buf0, buf0], [primals_1], [0, 1])
    return (buf0, )
    """
    assert walked(body, X, outputs=("buf0",)).peak_bytes == 400 + table_bytes


def test_parts_of_a_workspace_are_summed_up_behind_a_kernel():
    """As two reductions in different orders make it, fused into one kernel."""
    walk = walked(
        """
        workspace_0 = empty_strided_cuda((2048, ), (1, ), torch.float32)
        triton_fused_0(workspace_0)
        buf0 = workspace_0[0 * 8 * 128 : (0 + 1) * 8 * 128].view(8, 128).sum(dim=0)
        buf1 = workspace_0[1 * 8 * 128 : (1 + 1) * 8 * 128].view(8, 128).sum(dim=0)
        del workspace_0
        return (buf0, buf1, )
        """.replace("triton_fused_0", "cpp_fused_relu_0"),
        outputs=("buf0", "buf1"),
    )
    forward, _ = walk.profiles()
    assert (forward.peak_bytes, forward.end_bytes) == (8192 + 512 + 512, 1024)


def test_an_attribute_that_tensors_do_not_have_is_unreadable():
    with pytest.raises(UnreadableCode, match="no_such_method"):
        walked("buf0 = empty_strided_cpu((4, ), (1, ), torch.float32).no_such_method()")
