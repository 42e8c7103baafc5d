"""The published sizes, on the meta device: every weight of the class has its place in ours, and the other way round.

Settings are those of the checkpoints that the names of the tests say, as transformers and the model cards have them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from quintet.components.presets_llm import FLAN_T5_XL, OPT_2_7B
from quintet.components.roles import ImageSpec
from quintet.lab.recipe import load_recipe
from quintet.model.families import FAMILIES
from quintet.model.family import Facts
from quintet.model.mllm import MLLM


def blip2(text: dict[str, Any], image_token: int) -> Any:
    from transformers import Blip2Config

    return Blip2Config(text_config=text, image_token_index=image_token)


def instructblip(text: dict[str, Any]) -> Any:
    from transformers import InstructBlipConfig

    # BERT's 30,522 and one token more, [DEC].
    return InstructBlipConfig(text_config=text, qformer_config={"vocab_size": 30_523}, image_token_index=32_000)


def idefics() -> Any:
    from transformers import IdeficsConfig

    sight = {"embed_dim": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "num_hidden_layers": 32}
    asks = {"use_resampler": True, "resampler_n_latents": 64, "resampler_depth": 6, "resampler_n_heads": 16}
    return IdeficsConfig(
        additional_vocab_size=2,
        cross_layer_interval=4,
        qk_layer_norms=True,
        use_resampler=True,
        vision_config=sight | {"image_size": 224, "patch_size": 14},
        perceiver_config=asks | {"resampler_head_dim": 96, "qk_layer_norms_perceiver": True},
    )


def kosmos2() -> Any:
    from transformers import Kosmos2Config

    return Kosmos2Config()


PUBLISHED: dict[str, tuple[Callable[[], Any], str]] = {
    "blip2-opt-2.7b": (lambda: blip2(dict(OPT_2_7B.config), 50_265), "blip2"),
    "blip2-flan-t5-xl": (lambda: blip2(dict(FLAN_T5_XL.config), 32_100), "blip2:flan_t5"),
    "instructblip-vicuna-7b": (lambda: instructblip({"model_type": "llama", "vocab_size": 32_001}), "instructblip"),
    "instructblip-flan-t5-xl": (lambda: instructblip(dict(FLAN_T5_XL.config)), "instructblip:flan_t5"),
    "idefics-9b": (idefics, "idefics"),
    "kosmos-2-patch14-224": (kosmos2, "kosmos2"),
}


def settings(config: Any) -> dict[str, Any]:
    """All of them, defaults too, but for the names of classes and types."""
    found = config.to_dict() | {"architectures": None, "dtype": None}
    found["vision_config"] = {"num_channels": 3} | found["vision_config"]
    return found


def counted(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_weight_has_a_place(name: str) -> None:
    from transformers import AutoModelForImageTextToText

    make, recipe = PUBLISHED[name]
    config = make()
    with torch.device("meta"):
        theirs: Any = AutoModelForImageTextToText.from_config(config)
    filled = config.to_dict()
    family = FAMILIES[config.model_type]
    assert family.recipe(filled) == recipe
    made = family.from_config(filled, image=lambda size: ImageSpec(size=(size, size)))
    with torch.device("meta"):
        ours: MLLM = made.build()
    facts = Facts(
        kind=config.model_type, vocab=ours.llm.vocab, dtype="float32", source=name, **family.tokens(filled, {})
    )
    held = dict(theirs.named_parameters()) | {n: b for n, b in theirs.named_buffers() if n in theirs.state_dict()}
    family.load_state(ours, held, facts)
    assert settings(type(config).from_dict(family.to_config(ours, facts))) == settings(config)
    # The parts are the recipe's, but for rows of words.
    with torch.device("meta"):
        model = load_recipe(recipe)[1].model.build()
    assert counted(ours.encoders) == counted(model.encoders)
    project = ours.parts().get("connectors.image.project", ours.connectors)
    assert counted(project) == counted(model.parts().get("connectors.image.project", model.connectors))
    assert counted(ours.fusion) == counted(model.fusion)
