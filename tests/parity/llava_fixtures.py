"""Random LLaVAs, of transformers' class and of our parts, and when two are held to be the same.

Tolerance 1e-5 on logits of up to 3.3: kernels for other shapes may round differently. Measured worst case over all
combinations that are compared: 0.0, the same numbers to the last bit (torch 2.13, one thread, AVX-512). `verify` itself
allows 1e-4 of the largest logit in float32. Every comparison also measures how much other pictures change the logits:
by 2.4 and more.
"""

from pathlib import Path
from typing import Any

import torch

from conftest import published_tokenizer
from quintet.components.connectors.mlp import Mlp
from quintet.components.presets_llm import VICUNA_7B
from quintet.components.roles import ConnectorConfig
from quintet.model.family import Facts
from quintet.model.mllm import MLLM
from quintet.model.parity import Parity

TOLERANCE = 1e-5
IMAGE_TOKEN = 120


def facts_of(image_token_id: int) -> Facts:
    return Facts(kind="llava", image_token_id=image_token_id, vocab=64, dtype="float32", source="")


def published(
    tower: str = "clip",
    text: str = "llama",
    *,
    select: str = "default",
    layer: int | list[int] = -2,
    vocab: int = 128,
    **top: Any,
) -> Any:
    """A random LLaVA of transformers: a tower of 3 layers at 32 pixels, an LLM of 2 layers."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
        SiglipVisionConfig,
    )

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8}
    words: dict[str, Any] = {"vocab_size": vocab, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    words |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": top.get("tie_word_embeddings", False),
    }
    if text == "qwen3":
        words["head_dim"] = 16
    towers: dict[str, Any] = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
    texts: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig, "qwen3": Qwen3Config}
    torch.manual_seed(2)
    config = LlavaConfig(
        vision_config=towers[tower](**vision),
        text_config=texts[text](**words),
        image_token_index=IMAGE_TOKEN,
        vision_feature_select_strategy=select,
        vision_feature_layer=layer,
        **top,
    )
    model = LlavaForConditionalGeneration(config)
    return shaken(model)


def shaken(model: Any) -> Any:
    """With norms and biases that are not ones and zeros."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


def check(parity: Parity) -> None:
    assert parity.max_abs_logit_difference <= TOLERANCE, parity
    # A comparison that cannot see the pictures would prove nothing about the tower.
    assert parity.picture_effect > 100 * TOLERANCE, parity


def tokenizer_of_bytes(folder: Path) -> int:
    """A tokenizer without merges, as a run saves it; its size."""
    made = published_tokenizer(bos="<s>")
    made.save_pretrained(folder)
    return len(made)


def composition(encoder: Any, *, connector: ConnectorConfig | None = None, llm: Any = None, vocab: int = 64) -> MLLM:
    torch.manual_seed(4)
    config = MLLM.Config(
        encoders={"image": encoder},
        connectors={"image": connector or Mlp.Config()},
        llm=llm or VICUNA_7B.tiny(),
    )
    model = config.build(vocab=vocab).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model
