"""Known models are those that were published, and what is not known is answered with what is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from satcompile.commands.forecast.catalogue import Request, Step, build, from_config, names
from satcompile.errors import OptionError

PUBLISHED_MILLIONS = {
    "gpt2": 124.4, "gpt2-medium": 354.8, "gpt2-large": 774.0, "gpt2-xl": 1557.6,
    "llama-7b": 6738.4, "llama-13b": 13015.9, "llama-3-8b": 8030.3,
    "bert-base": 109.5, "bert-large": 335.2, "resnet-50": 25.6, "resnet-152": 60.2,
    "vit-b": 86.6, "vit-l": 304.3,
}  # fmt: skip
TINY = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 64,
    "max_position_embeddings": 48, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip


def parameters_of(step: Step) -> list[torch.nn.Parameter]:
    assert isinstance(step.fn, torch.nn.Module)
    return list(step.fn.parameters())


def test_every_name_is_compared_with_what_was_published() -> None:
    assert set(names()) == set(PUBLISHED_MILLIONS)


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_a_known_model_has_the_published_number_of_parameters(name: str) -> None:
    step = build(name, Request(batch=2))
    millions = sum(p.numel() for p in parameters_of(step)) / 1e6
    assert millions == pytest.approx(PUBLISHED_MILLIONS[name], rel=0.015)
    assert {t.shape[0] for t in step.kwargs.values()} == {2}


def test_a_request_sets_sizes_and_dtype() -> None:
    step = build("gpt2", Request(batch=3, sequence=17, dtype="bf16"))
    assert step.kwargs["input_ids"].shape == (3, 17)
    assert {p.dtype for p in parameters_of(step)} == {torch.bfloat16}
    images = build("resnet-50", Request(batch=3, dtype="float16"))
    assert images.kwargs["pixel_values"].shape == (3, 3, 224, 224)
    assert images.kwargs["pixel_values"].dtype == torch.float16


def test_lora_trains_adapters_and_nothing_else() -> None:
    full, adapted = (build("gpt2", Request(train=train)) for train in ("full", "lora"))
    whole = sum(p.numel() for p in parameters_of(full))
    frozen = sum(p.numel() for p in parameters_of(adapted) if not p.requires_grad)
    trained = [p for p in parameters_of(adapted) if p.requires_grad]
    assert frozen == whole
    # Rank 16 on the four linear layers of each of twelve blocks.
    pairs = ((768, 2304), (768, 768), (768, 3072), (3072, 768))
    assert sum(p.numel() for p in trained) == 12 * sum(16 * (i + o) for i, o in pairs)


@pytest.mark.parametrize(
    ("name", "request_of", "words"),
    [
        ("gpt-2", Request(), ("'gpt-2'", "Did you mean 'gpt2'", "module:function", "--config")),
        ("gpt2", Request(dtype="bfloat61"), ("'bfloat61'", "Did you mean 'bfloat16'", "fp32")),
        ("gpt2", Request(train="lara"), ("'lara'", "full, lora")),
    ],
)
def test_a_wrong_request_is_answered_with_what_is_possible(
    name: str, request_of: Request, words: tuple[str, ...]
) -> None:
    with pytest.raises(OptionError) as found:
        build(name, request_of)
    for word in words:
        assert word in str(found.value)


# -- configurations -----------------------------------------------------------------------------


def written(folder: Path, settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return path


def test_a_configuration_is_the_model_that_it_describes(tmp_path: Path) -> None:
    step = from_config(written(tmp_path, TINY), Request(batch=3))
    assert step.kwargs["input_ids"].shape == (3, 48)
    assert "LlamaForCausalLM" in step.title
    assert sum(p.numel() for p in parameters_of(step)) == 2 * 64 * 32 + 32 + 2 * (
        4 * 32 * 32 + 3 * 32 * 64 + 2 * 32
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (TINY | {"num_hiden_layers": 3}, ("'num_hiden_layers'",)),
        (
            {k: v for k, v in TINY.items() if k != "num_hidden_layers"} | {"num_hiden_layers": 3},
            ("'num_hiden_layers'", "Did you mean 'num_hidden_layers'"),
        ),
        (TINY | {"model_type": "lama"}, ("'lama'", "Did you mean 'llama'")),
        ({"hidden_size": 32}, ("model_type is None", '"model_type": "llama"')),
        ("{", ("is not JSON", "line 1")),
        ("[1, 2]", ("no object",)),
        (TINY | {"num_attention_heads": 5}, ("attention heads (5)",)),
        (TINY | {"hidden_size": "wide"}, ("hidden_size",)),
        ({"model_type": "encodec"}, ("module:function",)),
    ],
)
def test_a_wrong_configuration_is_named_with_what_is_wrong(
    settings: Any, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(OptionError) as found:
        from_config(written(tmp_path, settings), Request())
    for word in ("config.json", *words):
        assert word in str(found.value)


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none\.json: cannot be read \(No such file"):
        from_config(tmp_path / "none.json", Request())


# -- functions ----------------------------------------------------------------------------------

MODULE = """
import torch
from torch import nn

def as_tensor(): return nn.Linear(4, 4), torch.zeros(2, 4)
def as_tuple(): return nn.Bilinear(4, 4, 4), (torch.zeros(2, 4), torch.zeros(2, 4))
def as_dict(): return nn.Linear(4, 4), {"input": torch.zeros(2, 4)}
def model_alone(): return nn.Linear(4, 4)
def needs_more(width): return nn.Linear(width, 4), torch.zeros(2, 4)
def fails(): raise ZeroDivisionError("no layers to share")
not_a_function = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_step.py").write_text(MODULE)
    (tmp_path / "my_broken.py").write_text("import torch\nlayers = 1 /")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_step", raising=False)
    return "my_step"


@pytest.mark.parametrize("function", ["as_tensor", "as_tuple", "as_dict"])
def test_a_function_gives_a_model_and_its_inputs(module: str, function: str) -> None:
    step = build(f"{module}:{function}", Request())
    assert step.fn(*step.args, **step.kwargs).shape == (2, 4)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("my_stap:as_tensor", ("'my_stap'", "cannot be imported", "present folder")),
        ("my_broken:as_tensor", ("'my_broken'", "cannot be imported")),
        ("my_step:as_tenser", ("'as_tenser'", "Did you mean 'as_tensor'")),
        ("my_step:not_a_function", ("no function 'not_a_function'",)),
        ("my_step:model_alone", ("returned Linear", "(model, tensor)")),
        ("my_step:needs_more", ("'my_step:needs_more'", "width", "called with nothing")),
        ("my_step:fails", ("'my_step:fails'", "ZeroDivisionError", "no layers to share")),
    ],
)
def test_a_wrong_function_is_answered_with_what_it_must_be(
    module: str, what: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(OptionError) as found:
        build(what, Request())
    for word in words:
        assert word in str(found.value)
