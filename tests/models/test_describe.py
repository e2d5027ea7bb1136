"""`describe`: what it says, and that every way to show it says the same."""

from __future__ import annotations

import io
import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console
from tests.models.small import MAKERS, HandModel, shared

from align_transformers import Description, describe, resolve
from align_transformers.models.tree import Tree, html_of, text_of


def _words(text: str) -> list[str]:
    return re.sub(r"[│├└─\s]+", " ", text).split()


def _rich(found: object) -> str:
    console = Console(width=400, file=io.StringIO(), color_system=None)
    console.print(found)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", MAKERS)
def test_text_terminal_and_notebook_say_the_same(name: str) -> None:
    found = describe(shared(name))
    html = found._repr_html_()
    HTMLParser().feed(html)
    assert _words(unescape(re.sub(r"<[^>]*>", " ", html))) == _words(str(found)) == _words(_rich(found))
    assert not re.search(r"(src|href)=|<script|@import|url\(", html)  # nothing from elsewhere


@pytest.mark.parametrize("name", MAKERS)
def test_everything_that_was_found_or_refused_is_said(name: str) -> None:
    found, said = resolve(shared(name)), describe(shared(name))
    for stack, blocks in found.stacks.items():
        layers = sorted(layer for kind in said.stacks[stack] for layer in kind.layers)
        assert layers == list(range(len(blocks)))
        for kind in said.stacks[stack]:
            for layer in kind.layers:
                block = blocks[layer]
                places = {place.name: place for place in kind.places}
                assert set(places) == set(block.slots)
                assert {n for _, names in kind.unavailable for n in names} == set(block.missing)
                for component, slot in block.slots.items():
                    place = places[component]
                    root = kind.path.replace("{n}", str(layer))
                    assert slot.path == ".".join(filter(None, (root, place.module)))
                    assert place.width == slot.width


def test_blocks_are_grouped_by_kind() -> None:
    assert [kind.layers for kind in describe(shared("llama")).stacks[""]] == [(0, 1)]
    assert [kind.layers for kind in describe(shared("qwen3next")).stacks[""]] == [(0,), (1,)]
    albert = describe(shared("albert")).stacks[""][0]
    assert albert.layers == (0, 1, 2)
    assert albert.facts[0] == "one module, called 3 times"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama", "key_output self_attn.k_proj.output 12 = 2 x 6 query head h uses key/value head h // 2"),
        ("llama", "layers 0-1: LlamaDecoderLayer model.layers.{n}"),
        ("neox", "key_output attention.query_key_value.output 32 = 4 x 8 part of it, heads interleaved"),
        ("gpt2", "attention_pattern inside attn 4 heads"),
        ("t5", "stack 'encoder': 2"),
        ("t5", "cross_key_output layer.1.EncDecAttention.k.output 24 = 4 x 6"),
        ("mixtral", "the MLP is experts, kept in one tensor"),
        ("mixtral", "mlp_activation: the neurons are those of experts, row by row: see expert_activation"),
        ("mamba", "mixer: a mixer that is not softmax attention"),
        ("bert", "not additive: block_output is not block_input + attention_output + mlp_output"),
        ("bert", "final_norm_output: no norm reads the last block's output"),
        ("deepseek3", "key_output makes 6 of a head's 10 coordinates; the others have no head of their own"),
        ("qwen3next", "attention_value_output is not the heads' output as it is: gated or normed head by head"),
        ("llama", "logits lm_head.output 64"),
    ],
)
def test_what_is_said(name: str, said: str) -> None:
    assert said in " ".join(_words(str(describe(shared(name)))))


def test_refusals_are_said() -> None:
    said = str(describe(HandModel(attentions=2, mlps=2).eval()))
    assert "2 attention calls of a kind in one block" in said
    assert "several MLP branches, so none is the MLP: thinks.0.fall, thinks.1.fall" in said
    assert "no blocks: no stack of blocks was found in it" in str(describe(HandModel(chain=False).eval()))


def test_a_map_will_do_and_data_comes_out() -> None:
    found = describe(resolve(shared("t5")))
    assert found == describe(shared("t5"))
    assert isinstance(found, Description)
    assert set(json.loads(json.dumps(found.to_dict()))["stacks"]) == {"encoder", "decoder"}


def test_names_are_escaped() -> None:
    class Evil(HandModel):
        pass

    Evil.__name__ = "<script>alert('[bold]')</script>"
    found = describe(Evil().eval())
    assert "<script" not in found._repr_html_()
    assert "[bold]" in _rich(found)  # no markup either
    assert html_of(Tree("a", rows=(("<b>",),))).count("&lt;b&gt;") == 1


def test_an_empty_tree() -> None:
    assert text_of(Tree("a")) == "a"
    assert "<summary" not in html_of(Tree("a"))


@pytest.mark.slow
def test_the_real_one() -> None:
    from align_transformers import load_model

    model, _ = load_model("smollm2-135m")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    said = " ".join(_words(str(describe(model))))
    assert "layers 0-29: LlamaDecoderLayer model.layers.{n}" in said
    assert "key_output self_attn.k_proj.output 192 = 3 x 64 query head h uses key/value head h // 3" in said


@pytest.mark.parametrize("name", ["neox", "t5", "mixtral", "deepseek3"])
@pytest.mark.parametrize("width", [80, 200])
def test_names_of_components_are_never_folded(name: str, width: int) -> None:
    out = io.StringIO()
    Console(width=width, file=out).print(describe(shared(name)))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = [word for line in lines for word in line.split()]
    for blocks in resolve(shared(name)).stacks.values():
        for slot in blocks[-1].slots:
            assert slot in words
    assert name != "neox" or words.count("interleaved") == 3
