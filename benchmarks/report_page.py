"""The picture of the HTML report in docs/report.md.

A GPT-2 of four layers under 60% of the default's peak; its report is opened in Chromium, with the
mouse on the plan's peak.

    python -m benchmarks.report_page
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import transformers

import satcompile
from satcompile.report.data import Report
from tests.report.browser import opened

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "report.png"
WIDTH, HEIGHT = 1000, 1620
BATCH, LENGTH, VOCABULARY = 8, 128, 512
MOST_BYTES = 300_000


def main() -> None:
    report = planned_report()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        report.save(page)
        take_picture(page, report.graphs[0].timeline.peak_position)
    size = IMAGE.stat().st_size
    print(f"{IMAGE}: {size:,} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"the picture is larger than {MOST_BYTES:,} bytes")


def planned_report() -> Report:
    """The report of a model that was compiled, and of a step that was measured."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=4, n_embd=128, n_head=4, vocab_size=VOCABULARY, n_positions=LENGTH,
        use_cache=False, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).train()
    model.loss_type = "ForCausalLM"  # looked up by class name otherwise, which breaks the graph
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))

    @torch.compile(backend="sat", options={"memory_budget": "60% of default"})
    def forward(tokens: torch.Tensor) -> torch.Tensor:
        return model(input_ids=tokens, labels=tokens).loss

    def step() -> torch.Tensor:
        loss = forward(tokens)
        loss.backward()
        return loss

    step()
    model.zero_grad()
    satcompile.measure_peak(step)
    return satcompile.report(forward)


def take_picture(page: Path, position: int) -> None:
    IMAGE.parent.mkdir(exist_ok=True)
    with opened() as browser:
        browser.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        browser.show(page, WIDTH, height=HEIGHT)
        browser.hover_point("graph-0-memory", 0, position, scroll=False)
        if complaints := browser.complaints():
            raise SystemExit(f"the page complains: {complaints}")
        browser.driver.save_screenshot(str(IMAGE))


if __name__ == "__main__":
    main()
