"""Our decoder: shapes, presets, the halves of a block, gradients, files. 4 s."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quintet.components.llms.attention import Strategy, attend_with
from quintet.components.llms.decoder import Decoder
from quintet.components.llms.hf_config import from_hf, to_hf
from quintet.components.llms.rope import Rope, frequencies, tables
from quintet.components.llms.weights import SafetensorsFolder, load_hf_state, to_hf_state
from quintet.components.presets_llm import LLAMA2_7B, LLMS, MISTRAL_7B, QWEN2_0_5B, QWEN3_0_6B
from quintet.components.roles import Context
from quintet.errors import CheckpointError, ConfigError

PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-chat-7b": 6_738_415_616,
    "llama2-chat-13b": 13_015_864_320,
    "llama3-8b": 8_030_261_248,
    "mistral-7b-instruct-v0.2": 7_241_732_096,
    "qwen1.5-1.8b": 1_836_828_672,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "vicuna-7b-v1.5": 6_738_415_616,
    "vicuna-13b-v1.5": 13_015_864_320,
    "vicuna-7b-v1.1": 6_738_415_616,
    "vicuna-13b-v1.1": 13_015_864_320,
    # One more token in the embedding and in the head: + 2 × 4,096 and + 2 × 5,120.
    "vicuna-7b-v0": 6_738_423_808,
    "vicuna-13b-v0": 13_015_874_560,
}


@pytest.mark.parametrize("name", LLMS)
def test_a_preset_has_as_many_parameters_as_its_published_files(name: str) -> None:
    with torch.device("meta"):
        decoder = LLMS[name].build()
    assert sum(p.numel() for p in decoder.parameters()) == PUBLISHED[name]
    assert LLMS[name].source
    assert LLMS[name].licence


@pytest.mark.parametrize("preset", [LLAMA2_7B, MISTRAL_7B, QWEN2_0_5B, QWEN3_0_6B], ids=lambda c: c.family)
@pytest.mark.parametrize("scale", ["starter", "tiny"])
def test_small_scales_keep_the_traits_of_the_family(preset: Decoder.Config, scale: str) -> None:
    small = preset.starter() if scale == "starter" else preset.tiny()
    assert (small.family, small.qkv_bias, small.qk_norm) == (preset.family, preset.qkv_bias, preset.qk_norm)
    shape = (small.dim, small.depth, small.heads, small.kv_heads, small.ffn)
    assert shape == ((192, 6, 6, 2, 512) if scale == "starter" else (32, 2, 4, 2, 64))
    assert small.tie_head
    assert small.source is None
    assert from_hf(to_hf(small)) == small


def test_a_config_survives_json() -> None:
    for cfg in LLMS.values():
        assert Decoder.Config.from_json(cfg.to_json()) == cfg


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"kv_heads": 3}, "4 heads do not share 3 key heads"),
        ({"dim": 33}, "set head_dim"),
        ({"head_dim": 7}, "even width"),
        ({"sliding_window": 0}, "sees itself"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(LLAMA2_7B.tiny(), **change)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bloom"}, "model_type 'bloom'"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64}, "4 of 32 layers"),
        (
            {
                "model_type": "llama",
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "mscale": 1.0,
                    "mscale_all_dim": 0.8,
                },
            },
            "DeepSeek",
        ),
    ],
)
def test_published_configs_that_we_would_compute_differently_are_refused(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_hf(config)


def test_rope_of_older_files_is_read() -> None:
    old = {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert from_hf(old).rope == Rope(theta=5e5, scaling="linear", factor=2.0)


def test_frequencies_of_llama_3_by_hand() -> None:
    """θ = 10⁴, head of 4: f = 1 and 0.01 radians per token.

    Over 1,000 original tokens these make 159 and 1.59 turns. Above 4 turns: kept, 1. Between 1 and 4: the share kept
    is (1.5915 - 1) / 3 = 0.19718, so 0.01 · (0.19718 + 0.80282 / 8) = 0.00297535.
    """
    cfg = Rope(scaling="llama3", factor=8.0, original_positions=1000)
    torch.testing.assert_close(frequencies(cfg, head_dim=4), torch.tensor([1.0, 0.00297535]), atol=1e-8, rtol=1e-5)


def paths(*rows: list[int]) -> Context:
    enter = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in rows])
    positions = torch.tensor([[p for n in row for p in range(n)] for row in rows])
    order = torch.arange(enter.shape[1]).expand_as(enter)
    return Context(enter=enter, exit=enter + 1, order=order, positions=positions)


@pytest.fixture(name="tiny")
def _tiny() -> Decoder:
    torch.manual_seed(0)
    return QWEN3_0_6B.tiny().build()


def test_strategies_agree_through_the_whole_decoder(tiny: Decoder) -> None:
    """Documents against the dense mask, hidden states of size 1: measured 7e-7."""
    ctx = paths([5, 9, 2], [16])
    embeds = tiny.embed(torch.randint(512, (2, 16)))
    rope = tables(tiny.cfg.rope, ctx.positions, head_dim=8, dtype=torch.float32)
    dense = replace(ctx, attention=attend_with(Strategy.DENSE, ctx, rope=rope))
    torch.testing.assert_close(tiny(embeds, ctx), tiny(embeds, dense), atol=5e-6, rtol=0)


@pytest.mark.parametrize("rows", [[[16]], [[7, 9]]], ids=["causal", "documents"])
def test_autocast_runs_every_strategy_without_a_warning_and_stays_near(tiny: Decoder, rows: list[list[int]]) -> None:
    """bfloat16 keeps 8 bits: states of size 3 differ by a few hundredths (measured 0.013)."""
    ctx, tokens = paths(*rows), torch.randint(512, (1, 16))
    for here in (ctx, replace(ctx, order=torch.zeros_like(ctx.order))):
        with torch.autocast("cpu", torch.bfloat16):
            low = tiny(tiny.embed(tokens), here)
        low.sum().backward()
        torch.testing.assert_close(low, tiny(tiny.embed(tokens), here), atol=0.05, rtol=0)


def test_around_gets_every_block_in_order_and_may_call_its_halves(tiny: Decoder) -> None:
    ctx = paths([7])
    embeds = tiny.embed(torch.randint(512, (1, 7)))
    seen: list[int] = []

    def by_halves(index: int, block: nn.Module, hidden: Tensor, ctx: Context) -> Tensor:
        seen.append(index)
        assert block.index == index
        hidden = hidden + block.attend(hidden, ctx)
        return hidden + block.feed(hidden)

    assert torch.equal(tiny(embeds, ctx, by_halves), tiny(embeds, ctx))
    assert seen == [0, 1]


def test_every_parameter_gets_a_gradient(tiny: Decoder) -> None:
    tiny.head(tiny(tiny.embed(torch.randint(512, (1, 6))), paths([6]))).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in tiny.parameters())


def test_a_decoder_built_without_storage_and_filled_later_computes_the_same(tiny: Decoder) -> None:
    """Nothing is kept in buffers that `to_empty` would leave unset."""
    with torch.device("meta"):
        later = tiny.cfg.build()
    assert not list(later.buffers())
    later.to_empty(device="cpu")
    load_hf_state(later, to_hf_state(tiny))
    tokens = torch.randint(512, (1, 9))
    assert torch.equal(later(later.embed(tokens), paths([9])), tiny(tiny.embed(tokens), paths([9])))


def test_added_tokens_start_as_the_mean_of_the_published_ones(tiny: Decoder) -> None:
    wide = tiny.cfg.build(vocab=515)
    load_hf_state(wide, to_hf_state(tiny))
    assert wide.vocab == 515
    assert torch.equal(wide.embedding.weight[:512], tiny.embedding.weight)
    torch.testing.assert_close(wide.embedding.weight[512:], tiny.embedding.weight.mean(0).expand(3, -1))


def test_a_file_with_more_tokens_than_the_decoder_is_refused(tiny: Decoder) -> None:
    narrow = tiny.cfg.build(vocab=500)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is \(512, 32\) in the file and \(500, 32\)"):
        load_hf_state(narrow, to_hf_state(tiny))


def test_a_tied_head_with_other_weights_is_refused(tiny: Decoder) -> None:
    state = to_hf_state(tiny)
    load_hf_state(tiny, state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    with pytest.raises(CheckpointError, match="tie_head=False"):
        load_hf_state(tiny, state | {"lm_head.weight": torch.zeros(512, 32)})


def test_buffers_of_old_llama_files_are_no_surprise(tiny: Decoder) -> None:
    load_hf_state(tiny, to_hf_state(tiny) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})


def test_whole_and_sharded_folders_are_read_and_a_prefix_is_cut_off(tiny: Decoder, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**to_hf(tiny.cfg)))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    model.save_pretrained(tmp_path / "whole")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for name in ("sharded", "whole"):
        other = tiny.cfg.build()
        load_hf_state(other, SafetensorsFolder(tmp_path / name))
        assert torch.equal(other.embedding.weight, model.get_input_embeddings().weight)
    part = SafetensorsFolder(tmp_path / "whole", prefix="model.layers.1.")
    assert len(part) == 11
    assert part.shape("mlp.up_proj.weight") == (64, 32)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no model.safetensors"),
        ({"pytorch_model.bin": "x"}, "pickled and never opened"),
        ({"model.safetensors": "not a safetensors file"}, "not a whole safetensors file"),
        ({"model.safetensors.index.json": '{"weight_map": {"a": "../a.safetensors"}}'}, "not a file in this folder"),
        ({"model.safetensors.index.json": '{"weight_map": {"a": "b.safetensors"}}'}, "not a file in this folder"),
    ],
)
def test_folders_that_cannot_be_read_say_why(tmp_path: Path, files: dict[str, str], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFolder(folder)
