"""Experts and adapters inside the LLM: what each system's paper says is special about it, on tiny models. About 5 s."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import byte_tokenizer, picture
from quintet.components.fusion.token import TokenFusion
from quintet.components.presets_llm import QWEN3_0_6B
from quintet.data.collate import collate
from quintet.data.template import Template
from quintet.errors import ConfigError
from quintet.lab.pretrained import build_model
from quintet.lab.run import load_recipe
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.objectives.lm import lm
from quintet.training.optim import set_trainable
from quintet.values import Batch, Media, Node, Origin, Ref, Sample, Text, Turn

VOCAB = 512


def tiny(name: str, **fusion: Any) -> tuple[Recipe, MLLM]:
    """A recipe at the tiny scale and its model as training finds it; `fusion` replaces settings of its fusion."""
    recipe = at_scale(load_recipe(name)[1], "tiny")
    if fusion:
        recipe = replace(recipe, model=replace(recipe.model, fusion=replace(recipe.model.fusion, **fusion)))
    return recipe, build_model(recipe.model, vocab=VOCAB).eval()


def pixels(number: int) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(picture(number, height=32, width=32))).permute(2, 0, 1).contiguous()


def sample(*, pictures: int, question: str = "What is it?", answer: str = "A dog.") -> Sample:
    media = tuple(Media("image", Ref(f"{n}.png")) for n in range(pictures))
    turns = (Turn("user", (*media, Text(question))), Turn("assistant", (Text(answer),)))
    return Sample(Node(turns), Origin("memory", 1))


def batch(recipe: Recipe, samples: Sequence[Sample], *, template: Template | None = None, first: int = 0) -> Batch:
    """A row a sample; pictures are numbered from `first`."""
    from quintet.data.collate import Loaded

    columns = recipe.model.columns("image", (32, 32))
    spelt = template or recipe.template
    rows = [[spelt.tokens(s, byte_tokenizer(), lambda medium: ((32, 32), columns))] for s in samples]
    count = sum(len(tokens.items) for row in rows for tokens in row)
    return collate(rows, {n: Loaded(pixels(first + n)) for n in range(count)}, pad=0)


def hidden(model: MLLM, made: Batch) -> Tensor:
    with model.inference():
        return model(made).hidden


def bare(model: MLLM) -> MLLM:
    """The same encoder, connector and LLM with nothing around the blocks."""
    found = replace(model.config, fusion=TokenFusion.Config()).build(vocab=VOCAB).eval()
    found.encoders, found.connectors, found.llm = model.encoders, model.connectors, model.llm
    return found


@torch.no_grad()
def scramble(module: torch.nn.Module, *, seed: int = 1) -> None:
    """Other weights, far from what they began as."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter))


# ---- CogVLM ------------------------------------------------------------------------------------------------------
def test_cogvlms_experts_begin_as_the_llm_so_a_picture_is_read_as_by_it() -> None:
    recipe, model = tiny("cogvlm")
    for layer, block in zip(model.fusion.layers, model.llm.blocks, strict=True):
        theirs = block.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in layer.state_dict().items())
    made = batch(recipe, [sample(pictures=1), sample(pictures=0)])
    torch.testing.assert_close(hidden(model, made), hidden(bare(model), made), atol=1e-5, rtol=0)


def test_cogvlm_reads_text_exactly_as_its_llm_whatever_the_experts_learnt() -> None:
    recipe, model = tiny("cogvlm")
    scramble(model.fusion)
    text, seen = (batch(recipe, [sample(pictures=n), sample(pictures=0)]) for n in (0, 1))
    assert torch.equal(hidden(model, text), hidden(bare(model), text))
    assert not torch.allclose(hidden(model, seen), hidden(bare(model), seen), atol=0.1), "the experts do something"


def test_cogvlms_expert_serves_the_begin_and_the_patches_and_not_the_end() -> None:
    """One layer: a column's keys and values come from weights of its own kind, so its attention to itself tells."""
    recipe, model = tiny("cogvlm")
    made = batch(recipe, [sample(pictures=1)])
    item = made.media["image"]
    split = model.fusion._split(made.media, made.tokens)
    assert split.image.tolist() == item.slots.tolist()[:-1]
    other = recipe.model.fusion.__class__(serves_last=True).build_for(recipe.model.llm)
    assert other._split(made.media, made.tokens).image.tolist() == item.slots.tolist()


def test_what_nothing_reads_of_the_last_expert_is_saved_and_is_no_parameter() -> None:
    _, model = tiny("cogvlm")
    last = model.fusion.layers[-1]
    assert {n for n, _ in last.named_parameters()} == {"attn.k_proj.weight", "attn.v_proj.weight"}
    assert {"attn.q_proj.weight", "attn.o_proj.weight", "mlp.up_proj.weight"} <= last.state_dict().keys()
    _, whole = tiny("cogvlm", serves_last=True)
    assert len(list(whole.fusion.layers[-1].parameters())) == 7


def test_patches_share_a_position_between_that_of_the_begin_and_that_of_the_end() -> None:
    """<s>, begin, 16 patches, end, then " [INST]": 0, 1, 2 … 2, 3, 4."""
    recipe, _ = tiny("cogvlm")
    made = batch(recipe, [sample(pictures=1)])
    assert made.positions[0, :21].tolist() == [0, 1, *[2] * 16, 3, 4, 5]
    text = byte_tokenizer().decode(made.tokens[0, 19:].tolist(), keep_special=True)
    assert text == " [INST] What is it? [/INST] A dog.</s>"


def test_an_llm_whose_blocks_cannot_be_taken_apart_is_refused() -> None:
    from quintet.components.llms.hf import HFCausal

    recipe, _ = tiny("cogvlm")
    with pytest.raises(ConfigError, match=r"a visual expert works inside the blocks of our own decoder; HFCausal"):
        recipe.model.fusion.build_for(HFCausal.Config(config={"model_type": "opt"}))


def test_experts_hold_in_a_decoder_with_biases_and_norms_on_heads() -> None:
    recipe, _ = tiny("cogvlm")
    llm = replace(QWEN3_0_6B.tiny(), qkv_bias=True)
    model = build_model(replace(recipe.model, llm=llm), vocab=VOCAB).eval()
    made = batch(recipe, [sample(pictures=1)])
    torch.testing.assert_close(hidden(model, made), hidden(bare(model), made), atol=1e-5, rtol=0)


def test_cogvlms_trainable_share_is_the_papers() -> None:
    """Section 2.1 of the paper: 6.5 B in experts and adapter."""
    published = load_recipe("cogvlm")[1].paper.published
    assert sum(published.values()) == pytest.approx(6.5e9, rel=0.01)
