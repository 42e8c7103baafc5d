"""The original LLaVA code's names, and those of the systems that were built on it.

    llava, llava15     liuhaotian/LLaVA-…, whole or its `mm_projector.bin` alone
    shikra             shikras/shikra-7b, after its delta was added to LLaMA
    sharegpt4v         Lin-Chen/ShareGPT4V-7B and its tower, which it trained: it must not be CLIP's own
    vila               Efficient-Large-Model/vila-7b, which has two layers
    mobilevlm_v2       mtgv/MobileVLM_V2-1.7B, or MobileVLM-1.7B for `Ldp.Config(version=1)`
    ferret             Ferret-7B after its delta was added to Vicuna, with the region sampler

Sources: haotian-liu/LLaVA at c121f04, and the index of llava-v1.5-7b, which has no tower; shikras/shikra at ff79a4c
(`shikra.py`, `apply_delta.py`); apple/ml-ferret at 3c9e5c9 (`ferret_arch.py`); Meituan-AutoML/MobileVLM at 688fdec
(`vision_projector.py`, and torchvision's `InvertedResidual` for the first version). From memory: which of the others
write the tower, and that ShareGPT4V and VILA have LLaVA's names. With the tower and without are both read.
"""

from dataclasses import replace

from quintet.components.connectors.ldp import Ldp
from quintet.components.connectors.mlp import Mlp
from quintet.components.llms.decoder import Decoder
from quintet.components.presets_llm import VICUNA_7B
from quintet.model.mllm import MLLM
from quintet.model.released.common import LLM, TOWER, clip, llama, mlp
from quintet.model.released.table import Layout, Rule

__all__ = ["ferret", "llava", "mobilevlm", "sharegpt4v", "vila"]

_PROJECTOR, _CONNECTOR = "model.mm_projector", "connectors.image"


def llava(model: MLLM.Config) -> Layout:
    """`LlavaLlamaForCausalLM`, or its `mm_projector.bin` alone."""
    return Layout(model, (*_projector(model), *_tower(), *llama()), elsewhere=(TOWER, LLM))


def sharegpt4v(model: MLLM.Config) -> Layout:
    """As LLaVA; the tower is in the file, or in the same folder under CLIP's own names."""
    return Layout(model, (*_projector(model), *_tower(), *clip("vision_model."), *llama()))


def vila(model: MLLM.Config) -> Layout:
    """As LLaVA-1.5: what was released has two layers and Vicuna, where the paper has one layer and Llama 2."""
    llm = model.llm
    assert isinstance(llm, Decoder.Config)
    # Vicuna 1.5 is Llama 2's shape; whatever the size of `llm`, only where it came from differs.
    chat = replace(llm, source=llm.source and VICUNA_7B.source, licence=llm.source and VICUNA_7B.licence)
    return llava(replace(model, connectors={"image": Mlp.Config(depth=2)}, llm=chat))


def mobilevlm(model: MLLM.Config) -> Layout:
    """`MobileLlamaForCausalLM` with LDPv2, or with LDP where the connector is that."""
    connector = model.connectors["image"]
    assert isinstance(connector, Ldp.Config)
    rules = _ldp_v2() if connector.version == 2 else _ldp()
    return Layout(model, (*rules, *_tower(), *llama()), elsewhere=(TOWER, LLM))


def ferret(model: MLLM.Config) -> Layout:
    """`FERRETLlamaForCausalLM`."""
    sampler = "model.region_geo_sampler"
    regions = (
        Rule(f"{sampler}.diff_projector_list.*.**", "regions.steps.*.differ.**"),
        # A convolution of width 1 along the points: a linear layer.
        Rule(f"{sampler}.agg_projector_list.*.net.0.**", "regions.steps.*.mix.**"),
        Rule(f"{sampler}.agg_projector_list.*.norm.**", "regions.steps.*.norm.**"),
        Rule(f"{sampler}.flatten_projector.**", "regions.flatten.**"),
        Rule(f"{sampler}.dim_projector.**", "regions.project.**"),
    )
    return Layout(model, (*regions, *_projector(model), *_tower(), *llama()), elsewhere=(TOWER,))


def _projector(model: MLLM.Config) -> tuple[Rule, ...]:
    """One linear layer, or several with GELU between."""
    config = model.connectors["image"]
    if isinstance(config, Mlp.Config):
        return mlp(_PROJECTOR, depth=config.depth)
    return (Rule(f"{_PROJECTOR}.**", f"{_CONNECTOR}.project.**"),)


def _tower() -> tuple[Rule, ...]:
    return clip("model.vision_tower.vision_tower.vision_model.")


def _ldp_v2() -> tuple[Rule, ...]:
    peg = Rule(f"{_PROJECTOR}.peg.peg.0.**", f"{_CONNECTOR}.blocks.0.conv.**")
    return (*mlp(f"{_PROJECTOR}.mlp.mlp", depth=2), peg)


def _ldp() -> tuple[Rule, ...]:
    linear = tuple(
        Rule(f"{_PROJECTOR}.model.mlp.{theirs}.**", f"{_CONNECTOR}.project.layers.{ours}.**")
        for ours, theirs in enumerate((1, 3))
    )
    pieces = {
        "0.0": "depthwise",
        "0.1": "depthwise_norm",
        "1.fc1": "squeeze",
        "1.fc2": "excite",
        "2.0": "pointwise",
        "2.1": "pointwise_norm",
    }
    blocks = tuple(
        Rule(f"{_PROJECTOR}.model.mb_block.{n + 1}.block.{theirs}.**", f"{_CONNECTOR}.blocks.{n}.{ours}.**")
        for n in range(2)
        for theirs, ours in pieces.items()
    )
    return linear + blocks
