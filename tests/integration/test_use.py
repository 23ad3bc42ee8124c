"""The ways in which people compile and train."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import satcompile
from tests.integration.training import (
    FLOAT32_INSIDE,
    SAME_RANDOM_NUMBERS,
    assert_same_gradients,
    compile_within,
    gradients,
    only_graph,
    step_gradients,
)
from tests.zoo import build, llama, text


class Block(nn.Module):
    """A residual block with a wide middle, worth recomputing."""

    def __init__(self, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(self.down(nn.functional.gelu(self.up(self.norm(x)))))


class Net(nn.Module):
    def __init__(self, layers: int = 3, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


TIGHT = {"memory_budget": "88% of default"}


def _loss_gradients(run: Any, model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    run(x).square().sum().backward()
    found = gradients(model)
    model.zero_grad()
    return found


def _net(dropout: float = 0.0) -> tuple[nn.Module, torch.Tensor]:
    return Net(dropout=dropout).double(), torch.randn(64, 16, dtype=torch.float64)


def _check(run: Any, model: nn.Module, x: torch.Tensor) -> None:
    twin = copy.deepcopy(model)
    wanted = _loss_gradients(twin, twin, x)
    assert_same_gradients(_loss_gradients(run, model, x), wanted, 1e-11)


def test_compiled_module_under_a_budget() -> None:
    model, x = _net()
    _check(torch.compile(model, backend="sat", options=TIGHT), model, x)
    graph = only_graph(model)
    assert graph.recomputed
    assert graph.predicted_peak_bytes <= graph.budget_bytes < graph.default_peak_bytes


def test_model_compile_in_place() -> None:
    model, x = _net()
    model.compile(backend="sat", options=TIGHT)
    _check(model, model, x)
    assert only_graph(model).recomputed


def test_compiled_function() -> None:
    model, x = _net()

    def forward(x: torch.Tensor) -> torch.Tensor:
        return model(x)

    compiled = torch.compile(forward, backend="sat", options=TIGHT)
    _check(compiled, model, x)
    assert only_graph(compiled).recomputed
    assert only_graph(forward).recomputed


def test_six_blocks_make_one_graph_that_belongs_to_each() -> None:
    model = Net(layers=6).double()
    x = torch.randn(64, 16, dtype=torch.float64, requires_grad=True)  # as inner blocks see it
    for block in model.blocks:
        block.compile(backend="sat")
    _check(model, model, x)
    assert len(satcompile.report().graphs) == 1
    for block in model.blocks:
        assert satcompile.report(block).graphs[0] is satcompile.report().graphs[0]


def test_two_instances_of_a_class_train_apart() -> None:
    first, x = _net()
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.5)
    runs = [torch.compile(model, backend="sat", options=TIGHT) for model in (first, second)]
    _check(runs[0], first, x)
    _check(runs[1], second, x)
    assert satcompile.report(first).graphs
    assert satcompile.report(second).graphs


def test_another_batch_size_and_another_sequence_length() -> None:
    model = Net(layers=1).double()
    compiled = torch.compile(model, backend="sat")
    for shape in ((4, 16, 16), (6, 16, 16), (6, 24, 16), (5, 8, 16)):
        _check(compiled, model, torch.randn(*shape, dtype=torch.float64))


def test_no_grad_and_eval_between_training_steps() -> None:
    model, x = _net(dropout=0.3)
    options = {**TIGHT, **SAME_RANDOM_NUMBERS}
    compiled = torch.compile(model, backend="sat", options=options)
    _check(compiled, model, x)
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(x), copy.deepcopy(model)(x))
    model.train()
    _check(compiled, model, x)
    model.eval()
    _check(compiled, model, x)


@pytest.mark.slow
def test_dropout_masks_are_the_same_with_and_without_a_budget() -> None:
    model, x = _net(dropout=0.4)
    unlimited = _loss_gradients(torch.compile(model, backend="sat"), model, x)
    torch.compiler.reset()
    limited = torch.compile(model, backend="sat", options={"memory_budget": "85% of default"})
    found = _loss_gradients(limited, model, x)
    assert satcompile.report(model).graphs[-1].recomputed
    assert_same_gradients(found, unlimited, 1e-11)


def test_frozen_parameters_save_nothing_for_their_gradient() -> None:
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(4))).double()
    x = torch.randn(64, 16, dtype=torch.float64)
    torch.compile(model, backend="sat")(x).sum().backward()
    trained_bytes = only_graph(model).saved_bytes
    torch.compiler.reset()
    for layer in model[1:]:
        layer.requires_grad_(False)
    model.zero_grad()
    _check(torch.compile(model, backend="sat"), model, x)
    # Only the first layer learns, from its input: no activation is needed.
    assert trained_bytes == 3 * x.nbytes
    assert satcompile.report(model).graphs[-1].saved_bytes == 0


@pytest.mark.slow
def test_lora_saves_less_than_full_training() -> None:
    import peft

    model, inputs = llama(layers=1).double(), text()
    torch.compile(model, backend="sat")(**inputs).loss.backward()
    full_bytes = only_graph(model).saved_bytes
    torch.compiler.reset()
    model.zero_grad()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    adapted = peft.get_peft_model(model, config).double()
    eager = copy.deepcopy(adapted)
    wanted = step_gradients(eager, eager, inputs)
    found = step_gradients(torch.compile(adapted, backend="sat"), adapted, inputs)
    assert all("lora" in name for name in found)
    assert_same_gradients(found, wanted, FLOAT32_INSIDE["llama"])
    graph = satcompile.report(adapted).graphs[-1]
    print(f"saved bytes: full {full_bytes}, LoRA {graph.saved_bytes}")
    # What only a frozen weight's gradient would need is not among the saved values: the MLP's
    # product, the down projection's input, is read by that gradient alone.
    assert graph.saved_bytes < 0.8 * full_bytes


def test_two_outputs_and_a_loss_of_one() -> None:
    class Two(Net):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            middle = self.blocks[0](x)
            return self.blocks[2](self.blocks[1](middle)), middle

    model, x = Two().double(), torch.randn(64, 16, dtype=torch.float64)
    compiled = torch.compile(model, backend="sat", options=TIGHT)
    for pick in (lambda o: o[0].sum(), lambda o: o[1].sum(), lambda o: (o[0] * o[1]).sum()):
        twin = copy.deepcopy(model)
        pick(twin(x)).backward()
        pick(compiled(x)).backward()
        wanted = gradients(twin)
        found = {name: g for name, g in gradients(model).items() if name in wanted}
        assert_same_gradients(found, wanted, 1e-11)
        model.zero_grad()


@pytest.mark.slow
def test_user_checkpoint_regions_are_kept() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    model, x = Checkpointed(dropout=0.2).double(), torch.randn(64, 16, dtype=torch.float64)
    options = dict(SAME_RANDOM_NUMBERS)
    _check(torch.compile(model, backend="sat", options=options), model, x)
    kept = only_graph(model).saved_bytes
    torch.compiler.reset()
    plain = Net(dropout=0.2).double()
    plain.load_state_dict(model.state_dict())
    torch.compile(plain, backend="sat", options=options)(x).sum().backward()
    assert kept < satcompile.report(plain).graphs[-1].saved_bytes
    torch.compiler.reset()

    def run(compiled: Any) -> None:
        _check(compiled, model, x)

    compile_within(model, "95% of default", run, **options)


def test_state_dict_checkpoint_and_resume() -> None:
    model, x = _net()
    compiled = torch.compile(model, backend="sat", options=TIGHT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def train(steps: int) -> torch.Tensor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = compiled(x).square().mean()
            loss.backward()
            optimizer.step()
        return loss.detach()

    train(3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    uninterrupted = train(3)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    torch.testing.assert_close(train(3), uninterrupted, rtol=0, atol=0)


@pytest.mark.slow
def test_fifty_steps_follow_the_default_backend() -> None:
    model, inputs = build("gpt2")
    losses = {}
    for backend, options in (("inductor", None), ("sat", TIGHT)):
        torch.compiler.reset()
        twin = copy.deepcopy(model)
        twin.config.resid_pdrop = 0.0
        for module in twin.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        optimizer = torch.optim.AdamW(twin.parameters(), lr=3e-3)
        compiled = torch.compile(twin, backend=backend, options=options)
        losses[backend] = []
        for _ in range(50):
            optimizer.zero_grad()
            loss = compiled(**inputs).loss
            loss.backward()
            optimizer.step()
            losses[backend].append(loss.item())
    torch.testing.assert_close(losses["sat"], losses["inductor"], rtol=2e-3, atol=2e-3)
    assert losses["sat"][-1] < 0.7 * losses["sat"][0]


def test_optimizer_state_is_planned_for_before_it_exists() -> None:
    model, x = _net()
    optimizer = torch.optim.AdamW(model.parameters())
    compiled = torch.compile(model, backend="sat")
    compiled(x).sum().backward()
    resident = only_graph(model).resident
    optimizer.step()
    state = sum(v.nbytes for s in optimizer.state.values() for v in s.values())
    assert resident["optimizer_state"] == state
    assert resident["parameters"] == sum(p.nbytes for p in model.parameters())
    assert resident["inputs"] == x.nbytes
