"""LoRA with peft: the backend sees what is frozen and saves nothing for its gradients.

    python -m examples.peft_lora

``get_peft_model`` changes modules, so it comes before compiling. The adapter is saved and loaded by
peft as ever; compile in place (``model.compile``), so that the model stays peft's.
"""

from __future__ import annotations

import tempfile

import peft
import torch

import satcompile
from examples.tiny import BATCH, batches, gpt2, say_what_it_took, windows

STEPS = 6
BUDGET = "75% of default"


def adapted() -> peft.PeftModel:
    """The GPT-2 with adapters of rank 4 in its attention; 1% of the parameters are trained."""
    torch.manual_seed(1)  # of the adapters' weights
    config = peft.LoraConfig(r=4, lora_dropout=0.0, target_modules=["c_attn"], fan_in_fan_out=True)
    return peft.get_peft_model(gpt2(), config)


def train(model: peft.PeftModel) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for batch in batches(STEPS):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def measure(model: peft.PeftModel) -> None:
    batch = windows(0, BATCH)

    def step() -> object:
        output = model(input_ids=batch, labels=batch)
        output.loss.backward()
        return output  # the model returns its logits, too: they stay to the end

    satcompile.measure_peak(step)
    model.zero_grad()


def saved_and_loaded(model: peft.PeftModel) -> peft.PeftModel:
    """The adapter through a folder, onto a fresh copy of the frozen model."""
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(gpt2(), folder)


def main() -> list[float]:
    model = adapted()
    model.print_trainable_parameters()
    model.compile(backend="sat", options={"memory_budget": BUDGET})
    losses = train(model)
    print("losses:", " ".join(f"{loss:.3f}" for loss in losses))
    measure(model)
    say_what_it_took(model)
    batch = windows(2000, 2)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        there = model.eval()(input_ids=batch).logits
        back = saved_and_loaded(model).eval()(input_ids=batch).logits
    assert torch.equal(there, back)
    print("the adapter was saved and loaded")
    return losses


if __name__ == "__main__":
    main()
