"""A loop of one's own: one line makes the training step fit a budget.

    python -m examples.plain_loop

``torch.compile(model, backend="sat", options={"memory_budget": ...})`` is all there is to it. The
backend is found by its name because the package is installed; the loop itself stays as it was.
"""

from __future__ import annotations

import torch

import satcompile
from examples.tiny import batches, gpt2, say_what_it_took

STEPS = 8
# Usually bytes: "24GiB". A share of what torch.compile would need is handy where nobody knows that.
BUDGET = "75% of default"


def main() -> list[float]:
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    # Make the optimizer before the first step: its state is then planned for from the beginning.

    @torch.compile(backend="sat", options={"memory_budget": BUDGET})
    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        # Models of transformers return their logits with the loss. What is returned stays alive
        # to the end of the backward, so return the loss alone: logits can then be freed early,
        # or, with a large vocabulary, never be made whole.
        return model(input_ids=batch, labels=batch).loss

    losses = []
    for batch in batches(STEPS):
        loss = loss_of(batch)  # the first call compiles
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # sets gradients to None, which the plan counts on
        losses.append(loss.item())
    print("losses:", " ".join(f"{loss:.3f}" for loss in losses))

    # Is it true? measure_peak counts every allocation of a step: forward and backward, the
    # result held, no gradients set before.
    def step() -> torch.Tensor:
        loss = loss_of(batch)
        loss.backward()
        return loss

    satcompile.measure_peak(step)
    optimizer.zero_grad()
    say_what_it_took(loss_of)
    return losses


if __name__ == "__main__":
    main()
