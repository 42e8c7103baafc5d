"""Tiny models of released systems, with encoders of their own family, and folders as releases have them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from conftest import byte_tokenizer
from quintet.components.encoders.adapted import Adapted
from quintet.components.encoders.vision import Vision
from quintet.components.encoders.weights import save_hf_folder
from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.components.llms.decoder import Decoder
from quintet.components.llms.weights import to_hf_state
from quintet.components.roles import EncoderConfig
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.lab.recipe import load_recipe
from quintet.lab.released import load_released, plan_of
from quintet.model.mllm import MLLM
from quintet.model.released.files import Weights
from quintet.model.released.table import Layout
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.values import Batch, Node, Origin, Sample
from systems import says, shown, user

SIDE, VOCAB, DIM, HEADS = 56, 512, 32, 4


def small(name: str) -> Recipe:
    """The tiny recipe with an encoder of its own family: 16 patches, 3 layers; every head has keys of its own."""
    full = load_recipe(name)[1]
    tiny = at_scale(full, "tiny")
    encoders = {kind: _small(config) for kind, config in full.model.encoders.items()}
    llm = tiny.model.llm
    assert isinstance(llm, Decoder.Config)
    fusion = tiny.model.fusion
    if isinstance(fusion, GatedCrossAttention.Config):
        fusion = replace(fusion, features=DIM)
    return replace(
        tiny, model=replace(tiny.model, encoders=encoders, fusion=fusion, llm=replace(llm, kv_heads=llm.heads))
    )


def _small(config: Any) -> EncoderConfig:
    if isinstance(config, Adapted.Config):
        return replace(config, tower=replace(_small(config.tower), layer=(1, 2, 3, 1, 2, 3)))
    assert isinstance(config, Vision.Config)
    spec = replace(config.spec, size=(SIDE, SIDE))
    layer = config.layer if isinstance(config.layer, int) else (1, 2, 3, 3)
    sizes: dict[str, Any] = {"width": DIM, "depth": 3, "heads": HEADS, "ffn": 64, "patch": 14, "trained_size": SIDE}
    return replace(config, **sizes, layer=layer, image=spec, source="")


def random_state(model: MLLM, *, seed: int = 0) -> dict[str, Tensor]:
    """Numbers for every weight, norms and gates too, so that no two are alike."""
    torch.manual_seed(seed)
    return {name: torch.randn_like(value) * 0.2 for name, value in model.state_dict().items()}


def batch(recipe: Recipe, model: MLLM) -> Batch:
    """A question about a picture, or without one where the model takes none."""
    media = (shown(height=SIDE, width=SIDE),) if model.encoders else ()
    turns = user(*media, "What?"), says("A dog.")
    columns = model.config.columns("image", (SIDE, SIDE)) if model.encoders else 0
    sample, tokenizer = Sample(Node(turns), Origin("memory", 1)), byte_tokenizer(*recipe.added_tokens)
    tokens = recipe.template.tokens(sample, tokenizer, lambda medium: ((SIDE, SIDE), columns))
    loaded = {n: Loaded(load_image(m.ref, model.config.spec("image"))) for n, m in enumerate(media)}
    return collate([[tokens]], loaded, pad=0)


def logits(model: MLLM, made: Batch) -> Tensor:
    with model.inference():
        return model.logits(model(made).hidden)


def publish(layout: Layout, model: MLLM, folder: Path) -> Layout:
    """Puts the encoder and the LLM into folders as the hub has them, which the layout's composition then names."""
    config = model.config
    if config.encoders:
        encoder, of = model.encoders["image"], config.encoders["image"]
        tower = encoder.tower if isinstance(encoder, Adapted) else encoder
        assert isinstance(tower, Vision)
        save_hf_folder(tower, folder / "encoder")
        named = replace(tower.config, source=str(folder / "encoder"))
        config = replace(
            config, encoders={"image": replace(of, tower=named) if isinstance(of, Adapted.Config) else named}
        )
    assert isinstance(model.llm, Decoder)
    assert isinstance(config.llm, Decoder.Config)
    (folder / "llm").mkdir()
    save_file({n: t.contiguous() for n, t in to_hf_state(model.llm).items()}, folder / "llm" / "model.safetensors")
    return replace(layout, model=replace(config, llm=replace(config.llm, source=str(folder / "llm"))))


def taken(layout: Layout, folder: Path) -> MLLM:
    """The model of the files in a folder."""
    files = Weights(folder)
    return load_released(layout, files, plan_of(layout, files), vocab=VOCAB)
