"""transformers' `Blip2ForImageTextRetrieval` ⇄ `MLLM`: BLIP-2 after its first stage, without an LLM.

    vision_model                          ⇄  encoders.image                    EVA-CLIP, all its features
    vision_model.post_layernorm           ⇄  connectors.image.qformer.norm_picture
    query_tokens, qformer                 ⇄  connectors.image.qformer
    embeddings, qformer's words           ⇄  connectors.image.captions         words, positions, feed-forwards
    vision_, text_projection, itm_head    ⇄  connectors.image.captions         the heads of ITC and ITM

Only names move. The class has neither the head that writes captions nor a temperature: those of an import are as they
begin, and an export leaves them out. The last row of words is [DEC].
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quintet.components.connectors.qformer import Captions, QFormer
from quintet.components.encoders.hf_config import from_hf as vision_from_hf
from quintet.components.encoders.hf_config import to_hf as vision_to_hf
from quintet.components.encoders.hf_config import to_image_processor
from quintet.components.encoders.presets import EVA_CLIP_G
from quintet.components.encoders.vision import Vision
from quintet.components.encoders.weights import load_hf_state as load_vision
from quintet.components.encoders.weights import to_hf_state as vision_state
from quintet.components.llms.none import NoLLM
from quintet.components.llms.weights import SafetensorsFolder, finite
from quintet.errors import CheckpointError, ConfigError
from quintet.model.blip2 import LAYER
from quintet.model.checkpoint import read_json, write_json
from quintet.model.mllm import MLLM
from quintet.model.parity import Parity

__all__ = [
    "export_retrieval",
    "from_retrieval_config",
    "import_retrieval",
    "is_retrieval",
    "retrieval_views",
    "to_retrieval_config",
    "verify_retrieval",
]

CLASS = "Blip2ForImageTextRetrieval"
_TOP = {
    "qformer.queries": "query_tokens",
    "qformer.norm_picture": "vision_model.post_layernorm",
    "qformer.norm": "qformer.layernorm",
    "captions.words": "embeddings.word_embeddings",
    "captions.positions": "embeddings.position_embeddings",
    "captions.itc_picture": "vision_projection",
    "captions.itc_caption": "text_projection",
    "captions.itm": "itm_head",
}
_WORDS = {"up": "intermediate.dense", "down": "output.dense", "norm": "output.LayerNorm"}
_NEW = ("captions.itg", "captions.log_temperature", "project.")
"""What the class does not have."""


def is_retrieval(config: object) -> bool:
    """Whether a `config.json` is of this class; its `model_type` is that of BLIP-2 with an LLM."""
    return isinstance(config, Mapping) and CLASS in (config.get("architectures") or ())


# ---- settings ----------------------------------------------------------------------------------------------------
def from_retrieval_config(config: Mapping[str, Any]) -> MLLM.Config:
    """The composition that a `config.json` describes; `config` has all its defaults filled in.

    Raises:
        ConfigError: a setting that our parts do not have.
    """
    q, sight = config["qformer_config"], config["vision_config"]
    for name, wanted in {"hidden_act": "gelu", "use_qformer_text_input": True}.items():
        if q[name] != wanted:
            raise ConfigError(f"{name} is {q[name]!r} in qformer_config; ours reads captions with {wanted!r}")
    side = sight["image_size"]
    image = EVA_CLIP_G.at(size=side).image if isinstance(side, int) else None
    encoder = vision_from_hf({**sight, "model_type": "blip_2_vision_model"}, image=image)
    return MLLM.Config(
        encoders={"image": encoder.at(layer=-1, select="full")},
        connectors={
            "image": QFormer.Config(
                queries=config["num_query_tokens"],
                dim=q["hidden_size"],
                depth=q["num_hidden_layers"],
                heads=q["num_attention_heads"],
                ffn=q["intermediate_size"],
                cross_every=q["cross_attention_frequency"],
                norm_eps=float(sight["layer_norm_eps"]),
                eps=float(q["layer_norm_eps"]),
                positions=q["max_position_embeddings"],
                captions=Captions.Config(source="", vocab=q["vocab_size"] - 1, dim=config["image_text_hidden_size"]),
            )
        },
        llm=NoLLM.Config(),
    )


def to_retrieval_config(model: MLLM) -> dict[str, Any]:
    """The `config.json` of transformers for what a model compares pictures and captions with.

    Raises:
        ConfigError: the class cannot express its encoder or its connector.
    """
    connector, encoder = (dict(parts.items()).get("image") for parts in (model.connectors, model.encoders))
    if not isinstance(connector, QFormer) or connector.captions is None or connector.config.reads:
        raise ConfigError(f"{CLASS} compares with a Q-Former that reads captions; this model's connector does not")
    if not isinstance(encoder, Vision) or encoder.config.family != "blip2" or not connector.config.norm:
        raise ConfigError(f"{CLASS} has EVA-CLIP, its last norm in the Q-Former; this model has another encoder")
    c = connector.config
    return {
        "model_type": "blip-2",
        "architectures": [CLASS],
        "num_query_tokens": c.queries,
        "image_text_hidden_size": connector.captions.itc_picture.out_features,
        "image_token_index": None,
        "vision_config": vision_to_hf(encoder.config) | {"layer_norm_eps": c.norm_eps},
        "qformer_config": {
            "model_type": "blip_2_qformer",
            "vocab_size": connector.captions.words.num_embeddings,
            "hidden_size": c.dim,
            "num_hidden_layers": c.depth,
            "num_attention_heads": c.heads,
            "intermediate_size": c.ffn,
            "cross_attention_frequency": c.cross_every,
            "encoder_hidden_size": encoder.dim,
            "layer_norm_eps": c.eps,
            "max_position_embeddings": c.positions,
            "use_qformer_text_input": True,
        },
    }


# ---- weights -----------------------------------------------------------------------------------------------------
def _names(connector: QFormer) -> Iterator[tuple[str, str]]:
    """(ours, theirs) of every weight of the connector that the class has."""
    for name in connector.state_dict():
        if name.startswith(_NEW):
            continue
        part, _, leaf = name.rpartition(".")
        pieces = name.split(".")
        if name == "qformer.queries":
            yield name, _TOP[name]
        elif part in _TOP:
            yield name, f"{_TOP[part]}.{leaf}"
        elif pieces[:2] == ["captions", "ffn"]:
            yield name, f"qformer.encoder.layer.{pieces[2]}.{_WORDS[pieces[3]]}.{leaf}"
        else:
            yield name, f"qformer.encoder.layer.{pieces[2]}.{LAYER['.'.join(pieces[3:-1])]}.{leaf}"


@torch.no_grad()
def load_retrieval_state(model: MLLM, state: Mapping[str, Tensor]) -> None:
    """Copies published weights into a model of `from_retrieval_config`.

    Raises:
        CheckpointError: missing or unexpected names, or a shape that does not fit; the connector is then as it was.
    """
    connector: Any = model.connectors["image"]
    names = dict(_names(connector))
    norm = _TOP["qformer.norm_picture"]
    tower = {n: state[n] for n in state if n.startswith("vision_model.") and not n.startswith(norm)}
    theirs = {n for n in state if n not in tower and not n.endswith("position_ids")}
    missing, extra = sorted(set(names.values()) - theirs), sorted(theirs - set(names.values()))
    if missing or extra:
        raise CheckpointError(f"the file is no such {CLASS}: missing {missing[:4]}, unexpected {extra[:4]}")
    own = connector.state_dict()
    values = {ours: state[name] for ours, name in names.items()}
    if values["qformer.queries"].ndim == 3:
        values["qformer.queries"] = values["qformer.queries"][0]
    for ours, value in values.items():
        if value.shape != own[ours].shape:
            raise CheckpointError(f"{names[ours]} is {tuple(value.shape)}; expected {tuple(own[ours].shape)}")
    encoder: Any = model.encoders["image"]
    load_vision(encoder, tower)
    for ours, value in values.items():
        own[ours].copy_(value)


def retrieval_views(model: MLLM) -> dict[str, Tensor]:
    """The weights under the names that transformers writes, not copied."""
    connector: Any = model.connectors["image"]
    encoder: Any = model.encoders["image"]
    own = connector.state_dict()
    found = {f"vision_model.{name}": value for name, value in vision_state(encoder).items()}
    # The tower's last norm is the connector's: it stands last.
    found |= {name: own[ours] for ours, name in _names(connector)}
    return found | {"query_tokens": found["query_tokens"][None]}


# ---- folders -----------------------------------------------------------------------------------------------------
def import_retrieval(folder: Path) -> MLLM:
    """The model of a transformers `Blip2ForImageTextRetrieval` folder, on the CPU, in the numbers of its file.

    Raises:
        CheckpointError: no such folder, another class, or weights that do not fit its config.
        ConfigError: a setting that our parts do not have.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import Blip2Config

    raw = read_json(folder / "config.json")
    if not is_retrieval(raw):
        raise CheckpointError(f"{folder / 'config.json'} is not of {CLASS}")
    try:
        config = Blip2Config.from_dict(raw).to_dict()
    except (StrictDataclassError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read by transformers: {error}") from None
    state = SafetensorsFolder(folder)
    model = from_retrieval_config(config).build()
    if "query_tokens" in state:
        model = model.to(state["query_tokens"].dtype)
    load_retrieval_state(model, state)
    return model.eval()


def export_retrieval(model: MLLM, folder: Path) -> None:
    """Writes config, weights and picture processor as transformers reads them.

    Raises:
        ConfigError: the class cannot express the model; nothing is written then.
        CheckpointError: weights that are not finite; nothing is written then.
    """
    from huggingface_hub import save_torch_state_dict

    config = to_retrieval_config(model)
    spec = model.config.spec("image")
    processor = to_image_processor(spec) | {"image_processor_type": "BlipImageProcessor"}
    state = {name: value.detach().to("cpu").contiguous() for name, value in sorted(retrieval_views(model).items())}
    for name, value in state.items():
        finite(value, name=name, where="the model")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    save_torch_state_dict(state, folder)
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", processor)


def verify_retrieval(model: MLLM, folder: Path, *, seed: int = 0) -> Parity:
    """Compares ITC's cosines and ITM's logits with those of the folder as transformers loads it, in float32.

    Three pictures with captions of three lengths, padded together.

    Raises:
        CheckpointError: transformers finds missing, unexpected or misshapen weights, or the scores are not
            `Parity.proved`.
    """
    from transformers import Blip2ForImageTextRetrieval

    loaded: Any = Blip2ForImageTextRetrieval.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    reference, info = loaded
    wrong = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise CheckpointError(f"transformers does not load {folder} whole: {wrong}")
    reference.eval()
    dtype = next(model.parameters()).dtype
    model = model if dtype == torch.float32 else copy.deepcopy(model).float()
    connector: Any = model.connectors["image"]
    encoder: Any = model.encoders["image"]
    generator = torch.Generator().manual_seed(seed)
    lengths = (7, 4, 9)
    pictures = torch.randint(0, 256, (3, 3, *model.config.spec("image").size), dtype=torch.uint8, generator=generator)
    ids = torch.randint(1, connector.captions.words.num_embeddings, (3, max(lengths)), generator=generator)
    there = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = ids.masked_fill(~there, 0)

    def ours(pictures: Tensor) -> Tensor:
        features = torch.stack(encoder(tuple(pictures)).split())
        near = torch.einsum("nqp,mp->nmq", connector.pictures(features), connector.sentences(ids, there)).amax(-1)
        return torch.cat([near, connector.match(features, ids, there)], 1)

    with model.inference():
        given = {"pixel_values": encoder.normalise(pictures), "input_ids": ids, "attention_mask": there.long()}
        if reference.config.image_token_index is not None:
            # Then the class expects a token for each query before the words, as its processor writes them, and cuts
            # them off again; its mask is for both.
            image = torch.full((len(ids), reference.config.num_query_tokens), reference.config.image_token_index)
            given["input_ids"] = torch.cat([image, ids], 1)
            given["attention_mask"] = torch.cat([torch.ones_like(image), given["attention_mask"]], 1)
        theirs = [reference(**given, use_image_text_matching_head=itm).logits_per_image for itm in (False, True)]
        found, wanted, other = ours(pictures), torch.cat(theirs, 1), ours(255 - pictures)
    return Parity(
        max_abs_logit_difference=float((found - wanted).abs().max()),
        max_abs_logit=float(found.abs().max()),
        picture_effect=float((found - other).abs().max()),
        dtype="float32",
        shapes=tuple({"columns": length, "pictures": 1} for length in lengths),
        seed=seed,
        reference=CLASS,
    ).proved(folder)
