"""The command line on every architecture of the sample: `trace` of a checkpoint in a folder, against a plain hook."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.architectures.sample import seed
from tests.test_many_architectures import ARCHITECTURES, model_of
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from align_transformers import cli, resolve

WORDS = 40
BASE, SOURCE = [7, 8, 9, 10], [7, 20, 21, 10]


@contextmanager
def output_of(module: nn.Module, see: Any) -> Iterator[None]:
    """Hold a plain hook that shows `see` the first tensor of a module's output, and puts back what it returns."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return see(output)
        return (see(output[0]), *output[1:])

    with module.register_forward_hook(hook):
        yield


def swapped(model: nn.Module, block: nn.Module, position: int) -> Tensor:
    """Return the base's last logits after a hand-written swap at one position of a block."""
    base, source = torch.tensor([BASE]), torch.tensor([SOURCE])
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach().clone())
        return tensor

    def put(tensor: Tensor) -> Tensor:
        new = tensor.clone()
        new[:, position] = kept[0][:, position]
        return new

    with torch.no_grad():
        with output_of(block, keep):
            model(input_ids=source, use_cache=False)
        with output_of(block, put):
            return model(input_ids=base, use_cache=False).logits[0, -1]


@pytest.mark.parametrize("name", ARCHITECTURES, ids=lambda name: f"seed{seed()}-{name}")
def test_trace_equals_a_plain_hook(name, tmp_path, monkeypatch, capsys):
    model = model_of(name)
    model.save_pretrained(tmp_path / "model")
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(tmp_path / "model")
    written = AutoTokenizer.from_pretrained(tmp_path / "model")("w7 w8")["input_ids"]
    if written != [7, 8]:
        pytest.skip("transformers gives this model's checkpoint a tokenizer of its own, whatever stands beside it")
    base, source = (" ".join(f"w{i}" for i in ids) for ids in (BASE, SOURCE))
    arguments = ["trace", base, source, "--model", str(tmp_path / "model"), "--layers", "1", "--answers", "w4,w5"]
    monkeypatch.setattr(sys, "argv", ["align-transformers", *arguments, "--json", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code or 0, err) == (0, "")
    rows = {row["position"]: row for row in json.loads(out)["rows"]}
    assert sorted(rows) == [0, 1, 2, 3]
    block = model.get_submodule(resolve(model).stacks[""][1].path)
    for position in (1, 3):
        logits = swapped(model, block, position)
        assert rows[position]["metric"] == pytest.approx(float(logits[5] - logits[4]), abs=1e-4)
