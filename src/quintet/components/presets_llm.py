"""Published LLMs as data: shapes, hub names and licences. Sizes only; nothing is downloaded by naming one.

The totals in tests/unit/test_decoder.py are what the published files hold. Vicuna v0 was released as a difference to
LLaMA and has one added padding token, hence its 32,001 rows.
"""

from dataclasses import replace

from quintet.components.llms.decoder import Decoder
from quintet.components.llms.hf import HFCausal
from quintet.components.llms.hf_seq2seq import HFSeq2Seq
from quintet.components.llms.rope import Rope

__all__ = [
    "FLAN_T5_XL",
    "LLAMA2_7B",
    "LLAMA2_13B",
    "LLAMA2_CHAT_7B",
    "LLAMA2_CHAT_13B",
    "LLAMA3_8B",
    "LLAMA_7B",
    "LLAMA_13B",
    "LLMS",
    "MISTRAL_7B",
    "MOBILELLAMA_1_4B",
    "MOBILELLAMA_2_7B",
    "OPT_2_7B",
    "PERSIMMON_8B",
    "QWEN2_0_5B",
    "QWEN2_1_5B",
    "QWEN2_7B",
    "QWEN3_0_6B",
    "QWEN3_1_7B",
    "QWEN3_8B",
    "QWEN15_1_8B",
    "QWEN_7B",
    "UL2_32B",
    "VICUNA_7B",
    "VICUNA_13B",
    "VICUNA_V0_7B",
    "VICUNA_V0_13B",
    "VICUNA_V1_1_7B",
    "VICUNA_V1_1_13B",
]

LLAMA_7B = Decoder.Config(
    family="llama",
    vocab=32_000,
    dim=4096,
    depth=32,
    heads=32,
    kv_heads=32,
    ffn=11_008,
    norm_eps=1e-6,
    max_positions=2048,
    source="huggyllama/llama-7b",
    licence="LLaMA non-commercial",
)

LLAMA_13B = replace(LLAMA_7B, dim=5120, depth=40, heads=40, kv_heads=40, ffn=13_824, source="huggyllama/llama-13b")

LLAMA2_7B = replace(
    LLAMA_7B, norm_eps=1e-5, max_positions=4096, source="meta-llama/Llama-2-7b-hf", licence="Llama 2 Community"
)

LLAMA2_13B = replace(
    LLAMA_13B, norm_eps=1e-5, max_positions=4096, source="meta-llama/Llama-2-13b-hf", licence="Llama 2 Community"
)

LLAMA2_CHAT_7B = replace(LLAMA2_7B, source="meta-llama/Llama-2-7b-chat-hf")

LLAMA2_CHAT_13B = replace(LLAMA2_13B, source="meta-llama/Llama-2-13b-chat-hf")

VICUNA_7B = replace(LLAMA2_7B, source="lmsys/vicuna-7b-v1.5")

VICUNA_13B = replace(LLAMA2_13B, source="lmsys/vicuna-13b-v1.5")

VICUNA_V1_1_7B = replace(LLAMA_7B, source="lmsys/vicuna-7b-v1.1")

VICUNA_V1_1_13B = replace(LLAMA_13B, source="lmsys/vicuna-13b-v1.1")

VICUNA_V0_7B = replace(LLAMA_7B, vocab=32_001, source="lmsys/vicuna-7b-delta-v0")

VICUNA_V0_13B = replace(LLAMA_13B, vocab=32_001, source="lmsys/vicuna-13b-delta-v0")

LLAMA3_8B = Decoder.Config(
    family="llama",
    vocab=128_256,
    dim=4096,
    depth=32,
    heads=32,
    kv_heads=8,
    ffn=14_336,
    norm_eps=1e-5,
    rope=Rope(theta=500_000.0),
    max_positions=8192,
    source="meta-llama/Meta-Llama-3-8B-Instruct",
    licence="Llama 3 Community",
)

MISTRAL_7B = Decoder.Config(
    family="mistral",
    vocab=32_000,
    dim=4096,
    depth=32,
    heads=32,
    kv_heads=8,
    ffn=14_336,
    norm_eps=1e-5,
    rope=Rope(theta=1_000_000.0),
    max_positions=32_768,
    source="mistralai/Mistral-7B-Instruct-v0.2",
    licence="Apache-2.0",
)

QWEN_7B = Decoder.Config(
    family="qwen2",  # the same layers; its own files name them otherwise
    vocab=151_936,
    dim=4096,
    depth=32,
    heads=32,
    kv_heads=32,
    ffn=11_008,
    qkv_bias=True,
    max_positions=8192,
    source="Qwen/Qwen-7B",
    licence="Tongyi Qianwen",
)

QWEN2_0_5B = Decoder.Config(
    family="qwen2",
    vocab=151_936,
    dim=896,
    depth=24,
    heads=14,
    kv_heads=2,
    ffn=4864,
    rope=Rope(theta=1_000_000.0),
    qkv_bias=True,
    tie_head=True,
    max_positions=32_768,
    source="Qwen/Qwen2-0.5B-Instruct",
    licence="Apache-2.0",
)

QWEN2_1_5B = replace(QWEN2_0_5B, dim=1536, depth=28, heads=12, ffn=8960, source="Qwen/Qwen2-1.5B-Instruct")

QWEN2_7B = replace(
    QWEN2_0_5B,
    vocab=152_064,
    dim=3584,
    depth=28,
    heads=28,
    kv_heads=4,
    ffn=18_944,
    tie_head=False,
    source="Qwen/Qwen2-7B-Instruct",
)

QWEN3_0_6B = Decoder.Config(
    family="qwen3",
    vocab=151_936,
    dim=1024,
    depth=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    ffn=3072,
    rope=Rope(theta=1_000_000.0),
    qk_norm=True,
    tie_head=True,
    max_positions=40_960,
    source="Qwen/Qwen3-0.6B",
    licence="Apache-2.0",
)

QWEN3_1_7B = replace(QWEN3_0_6B, dim=2048, ffn=6144, source="Qwen/Qwen3-1.7B")

QWEN3_8B = replace(QWEN3_0_6B, dim=4096, depth=36, heads=32, ffn=12_288, tie_head=False, source="Qwen/Qwen3-8B")

OPT_2_7B = HFCausal.Config(
    config={
        "model_type": "opt",
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "ffn_dim": 10_240,
        "word_embed_proj_dim": 2560,
        "vocab_size": 50_272,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    },
    source="facebook/opt-2.7b",
    licence="OPT-175B non-commercial",
)

FLAN_T5_XL = HFSeq2Seq.Config(
    config={
        "model_type": "t5",
        "d_model": 2048,
        "d_ff": 5120,
        "d_kv": 64,
        "num_heads": 32,
        "num_layers": 24,
        "num_decoder_layers": 24,
        "vocab_size": 32_128,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
    source="google/flan-t5-xl",
    licence="Apache-2.0",
)

UL2_32B = HFSeq2Seq.Config(
    config={
        "model_type": "t5",
        "d_model": 4096,
        "d_ff": 16_384,
        "d_kv": 256,
        "num_heads": 16,
        "num_layers": 50,
        "num_decoder_layers": 50,
        "vocab_size": 250_112,
        "feed_forward_proj": "gated-silu",
        "dense_act_fn": "silu",
        "is_gated_act": True,
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
)
"""The encoder–decoder of PaLI-X: UL2-20B's widths (google/ul2), 50 + 50 layers, mT5's vocabulary: together the 32 B
that the paper gives (32.25 B; 30.5 B with UL2's own 32,128 tokens). No weights are released."""

MOBILELLAMA_1_4B = replace(
    LLAMA_7B,
    dim=2048,
    depth=24,
    heads=16,
    kv_heads=16,
    ffn=5632,
    source="mtgv/MobileLLaMA-1.4B-Chat",
    licence="Apache-2.0",
)

MOBILELLAMA_2_7B = replace(
    LLAMA_7B,
    dim=2560,
    depth=32,
    heads=32,
    kv_heads=32,
    ffn=6912,
    source="mtgv/MobileLLaMA-2.7B-Chat",
    licence="Apache-2.0",
)

PERSIMMON_8B = HFCausal.Config(
    config={
        "model_type": "persimmon",
        "vocab_size": 262_144,
        "hidden_size": 4096,
        "intermediate_size": 16_384,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "hidden_act": "relu2",
        "max_position_embeddings": 16_384,
        "layer_norm_eps": 1e-5,
        "qk_layernorm": True,
        "partial_rotary_factor": 0.5,
        "rope_theta": 25_000.0,
    },
    source="adept/persimmon-8b-base",
    licence="Apache-2.0",
)

QWEN15_1_8B = replace(
    QWEN2_0_5B,
    dim=2048,
    heads=16,
    kv_heads=16,
    ffn=5504,
    tie_head=False,
    source="Qwen/Qwen1.5-1.8B",
    licence="Tongyi Qianwen",
)

LLMS: dict[str, Decoder.Config] = {
    "llama-7b": LLAMA_7B,
    "llama-13b": LLAMA_13B,
    "llama2-7b": LLAMA2_7B,
    "llama2-13b": LLAMA2_13B,
    "llama2-chat-7b": LLAMA2_CHAT_7B,
    "llama2-chat-13b": LLAMA2_CHAT_13B,
    "llama3-8b": LLAMA3_8B,
    "mistral-7b-instruct-v0.2": MISTRAL_7B,
    "qwen1.5-1.8b": QWEN15_1_8B,
    "qwen2-0.5b": QWEN2_0_5B,
    "qwen2-1.5b": QWEN2_1_5B,
    "qwen2-7b": QWEN2_7B,
    "qwen3-0.6b": QWEN3_0_6B,
    "qwen3-1.7b": QWEN3_1_7B,
    "qwen3-8b": QWEN3_8B,
    "vicuna-7b-v1.5": VICUNA_7B,
    "vicuna-13b-v1.5": VICUNA_13B,
    "vicuna-7b-v1.1": VICUNA_V1_1_7B,
    "vicuna-13b-v1.1": VICUNA_V1_1_13B,
    "vicuna-7b-v0": VICUNA_V0_7B,
    "vicuna-13b-v0": VICUNA_V0_13B,
}
"""For listings; a recipe imports the name."""
