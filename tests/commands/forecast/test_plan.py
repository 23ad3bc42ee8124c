"""``satcompile.plan`` says what the backend would decide, and runs nothing to find out."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

import satcompile
from satcompile.commands.forecast.catalogue import LossOnly
from satcompile.errors import OptionError, UnsupportedError
from satcompile.report.saved import load_report
from tests.commands.forecast.backend_step import BackendStep, decided
from tests.zoo import BATCH, HIDDEN, TOKENS, VOCABULARY, images, llama, resnet, text

ADAMW = torch.optim.AdamW


def gpt2_with_dropout() -> nn.Module:
    """transformers' own rates; of attention, too."""
    config = transformers.GPT2Config(
        n_layer=2, n_embd=HIDDEN, n_head=2, vocab_size=VOCABULARY, n_positions=TOKENS,
        use_cache=False, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    assert config.attn_pdrop and config.resid_pdrop
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    return LossOnly(model)


def adapted_llama() -> nn.Module:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    return LossOnly(peft.get_peft_model(llama(), config))


STEPS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]] = {
    "gpt2 with dropout": (gpt2_with_dropout, text),
    "llama": (lambda: LossOnly(llama()), text),
    "llama with adapters": (adapted_llama, text),
    "resnet": (lambda: LossOnly(resnet()), images),
}


@pytest.fixture
def no_other_optimizers() -> Iterator[None]:
    """Both sides count the optimizers that are alive: those of other tests must be gone."""
    import gc

    gc.collect()
    yield
    gc.collect()


def built(name: str) -> tuple[nn.Module, dict[str, Any]]:
    make_model, make_inputs = STEPS[name]
    torch.manual_seed(0)
    return make_model().train(), make_inputs()


def assert_is_the_backends(made: satcompile.Plan, backend: BackendStep) -> None:
    """Every number that both know."""
    outcome = backend.made.graphs.outcome
    plan, resident_bytes = outcome.plan, backend.residency.total_bytes
    assert dict(made.resident) == backend.resident
    assert made.predicted_peak_bytes == resident_bytes + plan.profile.peak_bytes
    assert made.default_peak_bytes == resident_bytes + plan.default_profile.peak_bytes
    assert made.saved_bytes == plan.profile.saved_bytes
    assert made.activations_bytes == plan.default_profile.saved_bytes
    assert made.recompute_time_us == pytest.approx(plan.time_us + outcome.chunking_us)
    assert made.forward_time_us == pytest.approx(outcome.whole.forward_time_us)
    assert made.floor_bytes <= made.predicted_peak_bytes
    assert made.floor_bytes <= resident_bytes + backend.made.search.floor().profile.peak_bytes


# -- the backend's numbers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        pytest.param("gpt2 with dropout", "70% of default", marks=pytest.mark.slow),
        pytest.param("llama with adapters", "80% of default", marks=pytest.mark.slow),
        ("resnet", "80% of default"),
        ("resnet", "200% of default"),
    ],
)
@pytest.mark.usefixtures("no_other_optimizers")
def test_numbers_are_those_of_the_backends_first_plan(name: str, budget: str) -> None:
    model, inputs = built(name)
    made = satcompile.plan(model, memory_budget=budget, **inputs)
    budget_bytes = made.budget_bytes
    assert budget_bytes is not None
    assert_is_the_backends(made, decided(model, inputs, budget_bytes))
    if budget_bytes > made.default_peak_bytes:
        assert made.predicted_peak_bytes == made.default_peak_bytes
    elif made.predicted_peak_bytes < made.default_peak_bytes:
        assert made.saved_bytes < made.activations_bytes
    else:  # nothing is below torch's own plan, which is then the floor
        assert made.predicted_peak_bytes == made.default_peak_bytes > budget_bytes


@pytest.mark.parametrize("name", ["llama", "resnet"])
@pytest.mark.usefixtures("no_other_optimizers")
def test_fake_tensors_give_the_numbers_of_real_ones(name: str) -> None:
    model, inputs = built(name)
    real = satcompile.plan(model, memory_budget="70% of default", optimizer=ADAMW, **inputs)
    torch.compiler.reset()
    with satcompile.fake_tensors():
        model, inputs = built(name)
    fake = satcompile.plan(model, memory_budget="70% of default", optimizer=ADAMW, **inputs)
    ours, theirs = fake.to_dict(), real.to_dict()
    for found in (ours, theirs):
        for row in found["passes"]:
            del row["time_us"]  # of planning, by the clock
    assert ours == theirs


@pytest.mark.usefixtures("no_other_optimizers")
def test_gradients_that_the_backward_consumes_are_counted_as_the_backend_counts_them() -> None:
    model, inputs = built("llama")
    optimizer = ADAMW(model.parameters())
    returned = satcompile.plan(model, memory_budget="60% of default", **inputs)
    assert returned.budget_bytes is not None
    made = satcompile.plan(model, memory_budget=returned.budget_bytes, in_backward=True, **inputs)
    satcompile.fuse_optimizer(optimizer, in_backward=True)
    backend = decided(model, inputs, returned.budget_bytes)
    assert backend.made.graphs.consumed
    assert_is_the_backends(made, backend)
    assert made.resident["optimizer_state"] > 0


@pytest.mark.usefixtures("no_other_optimizers")
def test_consumed_gradients_lower_the_peak_of_a_step_that_they_set() -> None:
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(6)))
    x = torch.ones(1, 256)
    returned, consumed = (
        satcompile.plan(model, x, in_backward=asked, optimizer="sgd") for asked in (False, True)
    )
    assert returned.gradients_bytes == sum(p.nbytes for p in model.parameters())
    assert consumed.default_peak_bytes < returned.default_peak_bytes - 4 * model[0].weight.nbytes


@pytest.mark.usefixtures("no_other_optimizers")
def test_without_its_pass_the_update_consumes_no_gradients() -> None:
    model, x = nn.Linear(256, 256), torch.ones(1, 256)
    returned = satcompile.plan(model, x, optimizer="sgd")
    disabled = satcompile.plan(
        model, x, optimizer="sgd", in_backward=True, disable_passes=["fused_update"]
    )
    assert disabled.default_peak_bytes == returned.default_peak_bytes


def test_gradients_of_tensor_subclasses_cannot_be_planned_as_consumed() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    model, x = nn.Linear(8, 8), torch.ones(4, 8)
    model.weight = nn.Parameter(TwoTensor(torch.ones(8, 8), torch.ones(8, 8)))
    assert satcompile.plan(model, x, optimizer="sgd").predicted_peak_bytes
    with pytest.raises(UnsupportedError, match="Plan without in_backward"):
        satcompile.plan(model, x, optimizer="sgd", in_backward=True)


def test_a_planned_step_leaves_no_trace_in_what_is_compiled_later() -> None:
    """Dynamo remembers sizes that varied, and makes them symbols from then on."""
    sizes: list[list[Any]] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        sizes.append([value for value in inputs if isinstance(value, torch.SymInt)])
        return gm

    model = nn.Linear(8, 8)
    made = satcompile.plan(model, torch.ones(4, 8), optimizer="sgd", memory_budget="1GiB")
    assert made.largest_batch.planned
    torch.compile(model, backend=backend)(torch.ones(6, 8))
    assert sizes == [[]]


@pytest.mark.usefixtures("no_other_optimizers")
def test_frozen_parameters_have_no_gradients_and_no_optimizer_state() -> None:
    model, inputs = built("llama with adapters")
    made = satcompile.plan(model, optimizer=ADAMW, **inputs)
    trained_bytes = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    tensors = [*model.parameters(), *model.buffers()]
    assert made.gradients_bytes == trained_bytes
    assert made.resident["parameters"] <= sum(t.nbytes for t in tensors)
    assert 2 * trained_bytes <= made.resident["optimizer_state"] < 2.1 * trained_bytes + 1024


@pytest.mark.parametrize(
    ("named", "make"),
    [
        ("adamw", torch.optim.AdamW),
        ("SGD", torch.optim.SGD),
        ("rmsprop", torch.optim.RMSprop),
        (None, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)),
    ],
)
@pytest.mark.usefixtures("no_other_optimizers")
def test_the_state_of_an_optimizer_is_what_it_really_holds_after_a_step(
    named: str | None, make: Callable[..., torch.optim.Optimizer]
) -> None:
    model, inputs = built("llama")
    optimizer = make(model.parameters())
    asked = satcompile.plan(model, optimizer=named or optimizer, **inputs)

    model(**inputs).backward()
    optimizer.step()
    held = [v for state in optimizer.state.values() for v in state.values()]
    held_bytes = sum(v.nbytes for v in held if isinstance(v, torch.Tensor))
    assert asked.resident["optimizer_state"] == held_bytes


@pytest.mark.usefixtures("no_other_optimizers")
def test_no_optimizer_has_no_state() -> None:
    model, inputs = built("llama")
    assert satcompile.plan(model, optimizer="none", **inputs).resident["optimizer_state"] == 0


# -- nothing runs -------------------------------------------------------------------------------


class _Costly(nn.Module):
    """480 million parameters, of which a real one would take 1.9 GB."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(10_000, 10_000) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.sum()


def test_a_large_model_is_planned_in_little_memory() -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with satcompile.fake_tensors():
        model, x = _Costly(), torch.zeros(20_000, 10_000)
    made = satcompile.plan(model, x, memory_budget="90% of default", optimizer="adamw")
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) * 1024
    parameters_bytes = 4 * 5 * (10_000 * 10_000 + 10_000)
    assert made.resident["parameters"] == parameters_bytes
    assert made.default_peak_bytes > 4 * parameters_bytes
    assert grown_bytes < 400 * 2**20


def test_no_operation_of_a_real_model_runs() -> None:
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return _counted(super().forward(x))

    model = Counting(4, 4)
    x = torch.ones(2, 4)
    satcompile.plan(model, x)
    assert not _RAN
    model(x)
    assert _RAN == [True]


_RAN: list[bool] = []


@torch.library.custom_op("satcompile_tests::counted", mutates_args=())
def _counted(x: torch.Tensor) -> torch.Tensor:
    _RAN.append(True)
    return x.clone()


@_counted.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


_counted.register_autograd(lambda context, gradient: gradient)


# -- other devices ------------------------------------------------------------------------------


def test_on_a_gpu_attention_with_dropout_saves_no_scores() -> None:
    def saved_shapes(device: str) -> set[tuple[int, ...]]:
        torch.compiler.reset()
        model, inputs = built("gpt2 with dropout")
        inputs["input_ids"] = inputs["labels"] = torch.zeros(BATCH, 31, dtype=torch.long)
        found = satcompile.plan(model, device=device, **inputs)._decision
        saved = {found.problem.storages[s] for s in found.plan.saved}
        return {tuple(node.meta["val"].shape) for node in saved}

    def are_scores(shape: tuple[int, ...]) -> bool:
        # Of each head: the mask, which is one for all heads, is an input of attention everywhere.
        return shape[-2:] == (31, 31) and shape[:-2] != (BATCH, 1) and len(shape) > 2

    assert any(are_scores(shape) for shape in saved_shapes("cpu"))
    assert not any(are_scores(shape) for shape in saved_shapes("h200"))


def test_a_budget_of_auto_is_the_devices_memory_less_a_margin() -> None:
    model, x = nn.Linear(4, 4), torch.ones(2, 4)
    made = satcompile.plan(model, x, memory_budget="auto", device="H200")
    assert made.device.memory_bytes is not None and made.budget_bytes is not None
    assert 0.85 * made.device.memory_bytes < made.budget_bytes < made.device.memory_bytes
    assert made.fits


# -- what a plan says ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tight() -> satcompile.Plan:
    """A budget far below what any plan needs."""
    torch.compiler.reset()
    model, inputs = built("llama")
    return satcompile.plan(
        model, memory_budget="1KiB", optimizer="adamw", solver_effort=1, **inputs
    )


def test_below_the_floor_the_lowest_plan_is_told_and_does_not_fit(tight: satcompile.Plan) -> None:
    assert not tight.fits
    assert tight.least_peak_bytes <= tight.floor_bytes <= tight.predicted_peak_bytes
    assert tight.floor_bytes < tight.default_peak_bytes
    text = " ".join(str(tight).split())
    assert "No plan was found within 1.00 KiB" in text
    assert "smaller batch or sequence" in text and "in-backward" in text


def test_a_plan_at_its_floor_fits(tight: satcompile.Plan) -> None:
    model, inputs = built("llama")
    # The first plan of the backend leaves a margin of 1.5% to what it simulates.
    budget_bytes = int(tight.floor_bytes * 1.02)
    at_floor = satcompile.plan(
        model, memory_budget=budget_bytes, optimizer="adamw", solver_effort=1, **inputs
    )
    assert at_floor.fits


def test_the_curve_falls_in_time_as_its_peaks_rise(tight: satcompile.Plan) -> None:
    peaks = [point.peak_bytes for point in tight.curve]
    times = [point.time_added_us for point in tight.curve if not point.is_chosen]
    assert peaks == sorted(peaks) and times == sorted(times, reverse=True)
    assert peaks[0] >= tight.least_peak_bytes and peaks[-1] <= tight.default_peak_bytes


def test_a_plan_is_kept_as_data_and_as_a_page(tight: satcompile.Plan, tmp_path: Path) -> None:
    data = json.loads(json.dumps(tight.to_dict()))
    assert data["fits"] is False and data["floor_bytes"] == tight.floor_bytes
    for name in ("plan.json", "plan.html"):
        tight.save(tmp_path / name)
    (saved,) = load_report(tmp_path / "plan.json").graphs
    assert saved.predicted_peak_bytes == tight.predicted_peak_bytes
    assert "not run" in (tmp_path / "plan.html").read_text()


# -- what cannot be planned ---------------------------------------------------------------------


def test_a_graph_break_is_named(tmp_path: Path) -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x.sum()

    with pytest.raises(UnsupportedError, match=r"broken cannot be planned as one graph: .*break"):
        satcompile.plan(broken, torch.ones(2, requires_grad=True))


def test_a_model_that_raises_is_told_with_what_it_raised() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 5))
    with pytest.raises(UnsupportedError, match="Sequential cannot be") as found:
        satcompile.plan(model, torch.ones(2, 4))
    assert "a and b must have same reduction dim" in str(found.value)
    assert "linear.py, line" in str(found.value)
    assert "Call it once without planning" in str(found.value)


def test_an_exception_of_the_models_own_is_told() -> None:
    def refusing(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("eleven layers are too many")

    with pytest.raises(UnsupportedError, match=r"eleven layers are too many.*test_plan\.py, line"):
        satcompile.plan(refusing, torch.ones(2, requires_grad=True))


def test_a_step_without_gradients_is_told() -> None:
    model = nn.Linear(4, 4).requires_grad_(False)
    with pytest.raises(UnsupportedError, match="no output of the call requires gradients"):
        satcompile.plan(model, torch.ones(2, 4))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"device": "h20"}, ("'h20'", "Did you mean 'h200'", "cpu")),
        ({"optimizer": "adamv"}, ("'adamv'", "Did you mean", "none")),
        ({"optimizer": "adafactor"}, ("state of Adafactor cannot be predicted", "'reserve'")),
        ({"optimizer": nn.Linear}, ("class of torch.optim",)),
        ({"memory_budget": "plenty"}, ("'plenty'", "GiB")),
        ({"memory_budget": "auto", "device": "cpu"}, ("memory", "give a memory_budget")),
        ({"memory_budget": -1}, ("-1",)),
        ({"disable_passes": ["recomput"]}, ("'recomput'", "recompute")),
    ],
)
def test_a_wrong_argument_is_answered_with_what_is_possible(
    asked: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(OptionError) as found:
        satcompile.plan(nn.Linear(4, 4), torch.ones(2, 4), **asked)
    for word in words:
        assert word in str(found.value)


def test_names_of_the_package_are_there_without_torch_being_imported() -> None:
    code = (
        "import sys, satcompile; print('plan' in dir(satcompile), 'torch' in sys.modules); "
        "print(satcompile.plan.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "plan"]
