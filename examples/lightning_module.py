"""Lightning.

    python -m examples.lightning_module

Compile what computes the loss, inside the module, in ``configure_model``. ``torch.compile`` of the
whole LightningModule would also compile ``training_step`` with its logging, which breaks the graph.

Automatic and manual optimization work with any optimizer; ``gradient_clip_val`` belongs to the
automatic one, which clips between backward and step. Where our sweep steps (``satcompile.fuse_optimizer``), let it clip
(``max_grad_norm``). With updates inside the backward (``in_backward=True``) there is nothing left
to clip, and Lightning must not: leave ``gradient_clip_val`` at None.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning
import torch

import satcompile
from examples.tiny import BATCH, gpt2, say_what_it_took, windows

STEPS = 6
BUDGET = "75% of default"


class LanguageModel(lightning.LightningModule):
    """A GPT-2 whose training step is compiled within a budget.

    Attributes:
        budget: the option ``memory_budget``; None trains uncompiled.
        in_backward: update the weights inside the backward.
        manual: the module calls backward and step itself, as in a loop of one's own.
    """

    def __init__(
        self, budget: str | None = BUDGET, in_backward: bool = False, manual: bool = False
    ) -> None:
        super().__init__()
        self.automatic_optimization = not manual
        self.budget, self.in_backward = budget, in_backward
        self.model = gpt2()
        self.loss_of: Any = self._loss_of
        self.losses: list[float] = []

    def configure_model(self) -> None:
        # Called by the Trainer when the model is on its device; more than once, so look first.
        if self.budget is not None and self.loss_of == self._loss_of:
            options = {"memory_budget": self.budget}
            self.loss_of = torch.compile(self._loss_of, backend="sat", options=options)

    def _loss_of(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=batch, labels=batch).loss

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss = self.loss_of(batch)
        self.losses.append(loss.item())
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        if self.in_backward:
            satcompile.fuse_optimizer(optimizer, in_backward=True)
        return optimizer


def train(module: LanguageModel, gradient_clip_val: float | None = None) -> LanguageModel:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        gradient_clip_val=gradient_clip_val,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(windows(0, STEPS * BATCH), batch_size=BATCH))
    return module


def measure(module: LanguageModel) -> None:
    batch = windows(0, BATCH)

    def step() -> torch.Tensor:
        loss = module.loss_of(batch)
        loss.backward()
        return loss

    module.zero_grad()
    satcompile.measure_peak(step)
    module.zero_grad()


def main() -> LanguageModel:
    module = train(LanguageModel(), gradient_clip_val=1.0)
    print("losses:", " ".join(f"{loss:.3f}" for loss in module.losses))
    measure(module)
    say_what_it_took(module.loss_of)
    return module


if __name__ == "__main__":
    main()
