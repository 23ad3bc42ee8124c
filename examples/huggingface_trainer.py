"""The Hugging Face Trainer.

    python -m examples.huggingface_trainer

``TrainingArguments(torch_compile_backend=...)`` takes backends of a closed list, and "sat" is not
on it. Compile the model in place, before the Trainer gets it:

    model.compile(backend="sat", options={"memory_budget": ...})

In place, because ``torch.compile(model, ...)`` returns a wrapper whose ``forward`` takes
``*args, **kwargs``: the Trainer reads the names of inputs and labels off that, finds none, and
removes every column of the data set. ``model.compile`` leaves the model the object that it was, so
that saving, loading, labels and ``generate`` work as ever.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
import transformers

import satcompile
from examples.tiny import BATCH, LENGTH, gpt2, say_what_it_took, windows

STEPS = 6
BUDGET = "75% of default"


class Windows(torch.utils.data.Dataset):
    """Pieces of the text as the Trainer wants them."""

    def __init__(self, first: int, count: int) -> None:
        self._windows = windows(first, count)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._windows[index], "labels": self._windows[index]}


def trainer(model: Any, optimizer: torch.optim.Optimizer | None = None, **more: Any) -> Any:
    """A Trainer with its defaults (``max_grad_norm`` is 1.0), but for what makes it quiet."""
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        **more,
    )
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Windows(0, STEPS * BATCH),
        eval_dataset=Windows(1000, BATCH),
        optimizers=(optimizer, None),  # the Trainer makes what is None
    )


@dataclass(frozen=True)
class Outcome:
    """What a training came to: a loss and a norm of gradients for every step, and an evaluation."""

    losses: list[float]
    norms: list[float]
    evaluation: float


def train(trainer: Any) -> Outcome:
    """Train and evaluate."""
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    # Evaluation and generation would be compiled, too, for sizes that come once. That is worth
    # its time in a long run; here they run uncompiled.
    with torch.compiler.set_stance("force_eager"):
        evaluation = trainer.evaluate()["eval_loss"]
    return Outcome(
        [entry["loss"] for entry in steps], [entry["grad_norm"] for entry in steps], evaluation
    )


def with_a_budget(model: Any) -> Any:
    """The usual case: torch's AdamW, made by the Trainer, which clips gradients to a norm of 1."""
    model.compile(backend="sat", options={"memory_budget": BUDGET})
    return trainer(model)


def with_a_fused_sweep(model: Any) -> Any:
    """Our sweep in the place of AdamW's step; it clips, so the Trainer must not."""
    model.compile(backend="sat", options={"memory_budget": BUDGET})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    satcompile.fuse_optimizer(optimizer, max_grad_norm=1.0)
    return trainer(model, optimizer, max_grad_norm=0)


def with_updates_in_the_backward(model: Any) -> Any:
    """Gradients are gone when the backward ends, so nothing can be clipped: ``max_grad_norm=0``.
    The norm that the Trainer logs is then 0, and a warning says why."""
    model.compile(backend="sat", options={"memory_budget": BUDGET})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    satcompile.fuse_optimizer(optimizer, in_backward=True)
    return trainer(model, optimizer, max_grad_norm=0)


def measure(trainer: Any) -> None:
    """Measure a step as the Trainer takes it."""
    inputs = {"input_ids": windows(0, BATCH), "labels": windows(0, BATCH)}
    tokens = torch.tensor(float(BATCH * (LENGTH - 1)))  # of which the loss is the mean
    trainer.model.zero_grad()
    satcompile.measure_peak(lambda: trainer.training_step(trainer.model, inputs, tokens))
    trainer.model.zero_grad()


def save_load_generate(model: Any) -> torch.Tensor:
    """What was trained is an ordinary model of transformers."""
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    loaded = transformers.GPT2LMHeadModel.from_pretrained(folder)
    prompt = windows(2000, 1)[:, :32]
    with torch.compiler.set_stance("force_eager"):
        written = model.generate(prompt, max_new_tokens=8, do_sample=False)
    assert torch.equal(written, loaded.generate(prompt, max_new_tokens=8, do_sample=False))
    return written


def main() -> Outcome:
    model = gpt2()
    trainer = with_a_budget(model)
    outcome = train(trainer)
    print("losses:", " ".join(f"{loss:.3f}" for loss in outcome.losses))
    print(f"evaluation: {outcome.evaluation:.3f}")
    measure(trainer)
    say_what_it_took(model)
    print("generated:", bytes(save_load_generate(model)[0].tolist()))
    return outcome


if __name__ == "__main__":
    main()
