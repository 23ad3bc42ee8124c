"""Every example runs, keeps within its budget, and trains as the same loop does uncompiled."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers

import satcompile
from examples import huggingface_trainer, lightning_module, peft_lora, plain_loop
from examples.tiny import BATCH, batches, gpt2

CHECKOUT = Path(__file__).parents[2]
CLOSE = 1e-4  # of a loss: kernels that fuse differently add in another order


def assert_within_the_budget() -> None:
    """The one training graph that ran is within it; and there was something to plan."""
    (graph,) = satcompile.report().graphs
    assert graph.measured_peak_bytes is not None and graph.budget_bytes is not None
    assert graph.measured_peak_bytes <= graph.budget_bytes < graph.default_peak_bytes


def assert_close(found: Sequence[float], wanted: Sequence[float]) -> None:
    assert found == pytest.approx(wanted, rel=CLOSE)
    assert found[-1] < found[0]


def eager_losses(steps: int, batch: int = BATCH) -> list[float]:
    """Losses of the plain loop, uncompiled."""
    model, losses = gpt2(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for tokens in batches(steps, batch):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_plain_loop() -> None:
    assert_close(plain_loop.main(), eager_losses(plain_loop.STEPS))
    assert_within_the_budget()


# -- the Hugging Face Trainer ----------------------------------------------------------------


@pytest.fixture(scope="module")
def uncompiled() -> huggingface_trainer.Outcome:
    """With the Trainer's own defaults: gradients are clipped to a norm of 1."""
    return huggingface_trainer.train(huggingface_trainer.trainer(gpt2()))


@pytest.mark.slow
def test_huggingface_trainer(uncompiled: huggingface_trainer.Outcome) -> None:
    found = huggingface_trainer.main()
    assert_close(found.losses, uncompiled.losses)
    assert found.norms == pytest.approx(uncompiled.norms, rel=1e-3)
    assert found.evaluation == pytest.approx(uncompiled.evaluation, rel=CLOSE)
    assert max(uncompiled.norms) > 1  # so that something was clipped
    assert_within_the_budget()


@pytest.mark.slow
def test_huggingface_trainer_with_a_fused_sweep(uncompiled: huggingface_trainer.Outcome) -> None:
    found = huggingface_trainer.train(huggingface_trainer.with_a_fused_sweep(gpt2()))
    assert_close(found.losses, uncompiled.losses)
    assert found.evaluation == pytest.approx(uncompiled.evaluation, rel=CLOSE)


@pytest.mark.slow
def test_huggingface_trainer_with_updates_in_the_backward() -> None:
    unclipped = huggingface_trainer.train(huggingface_trainer.trainer(gpt2(), max_grad_norm=0))
    run = huggingface_trainer.with_updates_in_the_backward(gpt2())
    found = huggingface_trainer.train(run)
    assert_close(found.losses, unclipped.losses)
    assert found.norms == [0] * len(found.norms)
    assert "fused_update" in [row.name for row in satcompile.report().graphs[0].passes]


def test_the_trainers_own_option_takes_backends_of_a_closed_list() -> None:
    with pytest.raises(ValueError, match=r"(?i)sat"):
        huggingface_trainer.trainer(gpt2(), torch_compile_backend="sat")


def test_the_trainer_cannot_read_labels_off_a_wrapped_model() -> None:
    """Why the example compiles in place."""
    assert huggingface_trainer.trainer(gpt2()).label_names == ["labels"]
    wrapped = torch.compile(gpt2(), backend="sat")
    assert isinstance(wrapped._orig_mod, transformers.PreTrainedModel)
    assert huggingface_trainer.trainer(wrapped).label_names == []


# -- Lightning -------------------------------------------------------------------------------


def lightning_losses(clip: float | None) -> list[float]:
    module = lightning_module.LanguageModel(budget=None)
    return lightning_module.train(module, gradient_clip_val=clip).losses


@pytest.mark.slow
def test_lightning_module() -> None:
    assert_close(lightning_module.main().losses, lightning_losses(clip=1.0))
    assert_within_the_budget()


@pytest.mark.slow
def test_lightning_module_with_updates_in_the_backward() -> None:
    wanted = lightning_losses(clip=None)
    module = lightning_module.LanguageModel(in_backward=True)
    assert_close(lightning_module.train(module).losses, wanted)
    assert all(parameter.grad is None for parameter in module.parameters())


# -- peft ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_peft_lora() -> None:
    assert_close(peft_lora.main(), peft_lora.train(peft_lora.adapted()))
    assert_within_the_budget()


# -- several processes -----------------------------------------------------------------------


def printed_by(example: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{example}"],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses_in(printed: str, title: str) -> list[float]:
    found = re.search(rf"^{title}: ([\d. ]+)$", printed, re.MULTILINE)
    assert found is not None, printed
    return [float(loss) for loss in found[1].split()]


@pytest.mark.slow
def test_data_parallel() -> None:
    printed = printed_by("data_parallel")
    # Two processes with a half each are one with the whole.
    assert_close(losses_in(printed, "losses"), eager_losses(len(losses_in(printed, "losses"))))
    peaks = re.findall(r"peak ([\d,]+) bytes, budget ([\d,]+),.* own plan ([\d,]+)", printed)
    numbers = [[int(number.replace(",", "")) for number in row] for row in peaks]
    assert len(numbers) == 2 and numbers[0] == numbers[1]
    measured, budget, default = numbers[0]
    buckets = sum(parameter.nbytes for parameter in gpt2().parameters())
    assert measured + buckets <= budget < default + buckets


@pytest.mark.slow
def test_fsdp2() -> None:
    printed = printed_by("fsdp2")
    assert_close(losses_in(printed, "losses"), losses_in(printed, "eager"))
    refused = re.findall("^refused: (.*)$", printed, re.MULTILINE)
    assert len(refused) == 2
    assert "memory_budget" in refused[0] and "fully_shard" in refused[0]
    assert "DTensor" in refused[1]
