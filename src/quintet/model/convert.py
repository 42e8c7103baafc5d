"""Models in and out of transformers' folders, with the logits of both compared and recorded.

    quintet import SRC --out RUN    a LLaVA, LLaVA-NeXT or Fuyu folder becomes RUN/model/, RUN/parity.json
    quintet export RUN --out DIR    RUN/model/ becomes such a folder, DIR/parity.json

Nothing is downloaded, no pickle is opened, no code of a folder is run.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from quintet.components.encoders.hf_config import image_spec, to_image_processor
from quintet.components.encoders.tiles import Tiles
from quintet.components.llms.none import NoLLM
from quintet.components.llms.weights import SafetensorsFolder
from quintet.components.roles import ImageSpec
from quintet.errors import CheckpointError, ConfigError
from quintet.model.blip2_retrieval import export_retrieval, import_retrieval, is_retrieval, verify_retrieval
from quintet.model.checkpoint import CAPTIONS, load_model, read_json, save_model, write_json
from quintet.model.fuyu import NEWLINE_ID, from_fuyu_config, load_fuyu_state, to_fuyu_config, to_fuyu_state
from quintet.model.llava import from_llava_config, load_llava_state, to_llava_config, to_llava_state
from quintet.model.mllm import MLLM
from quintet.model.parity import Parity, verify

__all__ = [
    "TOKENIZER_FILES",
    "Conversion",
    "LlavaFacts",
    "export_fuyu",
    "export_llava",
    "export_run",
    "import_fuyu",
    "import_llava",
    "import_run",
]

IMAGE_TOKEN = "<image>"
FACTS = "imported.json"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True)
class LlavaFacts:
    """What a LLaVA or Fuyu folder says beside its model."""

    image_token_id: int
    """The token that stands for one feature of a picture."""
    vocab: int
    dtype: str
    source: str
    """Name of the folder."""
    newline_token_id: int | None = None
    """Fuyu's: the token that ends a row of patches."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion made: where, how large, and how near the logits are."""

    place: Path
    parameters: int
    files: tuple[str, ...]
    parity: Parity


# ---- in ----------------------------------------------------------------------------------------------------------
def import_llava(folder: Path) -> tuple[MLLM, LlavaFacts]:
    """The model of a transformers LLaVA or LLaVA-NeXT folder, on the CPU, in the numbers of its file.

    Raises:
        CheckpointError: no such folder, another class, or weights that do not fit its config.
        ConfigError: a tower, a text model or a setting that our parts do not have.
    """
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict) or raw.get("model_type") not in ("llava", "llava_next"):
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise CheckpointError(
            f"{folder / 'config.json'} has model_type {kind!r}; expected 'llava' or 'llava_next', as transformers "
            "saves LlavaForConditionalGeneration (a release in its authors' own layout is read with --as RECIPE)"
        )
    config = _filled(raw, folder)
    model_config = from_llava_config(config, image=lambda size: _picture_preparation(folder, config, size))
    state = SafetensorsFolder(folder)
    dtype = _dtype(state, folder)
    with torch.device("meta"):
        model = model_config.build()
    model = model.to(dtype).to_empty(device="cpu")
    load_llava_state(model, state)
    facts = LlavaFacts(
        image_token_id=config["image_token_index"],
        vocab=model.llm.vocab,
        dtype=str(dtype).removeprefix("torch."),
        source=folder.name,
    )
    if facts.image_token_id >= facts.vocab:
        raise CheckpointError(
            f"{folder}: the image token {facts.image_token_id} is past the {facts.vocab} of the vocabulary"
        )
    return model.eval(), facts


def import_fuyu(folder: Path) -> tuple[MLLM, LlavaFacts]:
    """The model of a transformers Fuyu folder, on the CPU, in the numbers of its file.

    Raises:
        CheckpointError: no such folder, or weights that do not fit its config.
        ConfigError: a setting that our parts do not have.
    """
    config = _filled(read_json(folder / "config.json"), folder)
    state = SafetensorsFolder(folder)
    dtype = _dtype(state, folder)
    tokenizer = _tokenizer(folder)
    newline = tokenizer.get_vocab().get("|NEWLINE|", NEWLINE_ID) if tokenizer else NEWLINE_ID
    # Not on the meta device, as LLaVA's: Persimmon's rotary frequencies are in no file.
    model = from_fuyu_config(config).build().to(dtype)
    load_fuyu_state(model, state, newline_token_id=newline)
    facts = LlavaFacts(
        image_token_id=config["image_token_id"],
        vocab=model.llm.vocab,
        dtype=str(dtype).removeprefix("torch."),
        source=folder.name,
        newline_token_id=newline,
    )
    return model.eval(), facts


def import_run(source: Path, out: Path, *, processor: Mapping[str, Any] | None = None) -> Conversion:
    """`quintet import`: writes RUN/model/ with the tokenizer's files beside it, and RUN/parity.json.

    Such a folder does not say how its conversations are spelt in a form that can be read back: `processor` does, the
    content of processor.json. With it and a tokenizer.json, RUN can be talked to and measured.
    """
    _free(out)
    raw = read_json(source / "config.json")
    if is_retrieval(raw):
        return _import_retrieval(source, out, processor)
    fuyu = isinstance(raw, dict) and raw.get("model_type") == "fuyu"
    model, facts = import_fuyu(source) if fuyu else import_llava(source)
    parity = verify(model, source, image_token_id=facts.image_token_id, newline_token_id=facts.newline_token_id)
    place = out / "model"
    save_model(model, place)
    write_json(place / FACTS, asdict(facts))
    _copy_tokenizer(source, place)
    if processor is not None:
        write_json(place / "processor.json", dict(processor))
    write_json(out / "parity.json", parity.to_json())
    return _conversion(place, model, parity)


# ---- out ---------------------------------------------------------------------------------------------------------
def export_llava(model: MLLM, folder: Path, *, image_token_id: int, image_token: str = IMAGE_TOKEN) -> None:
    """Writes config, weights and picture processor as transformers reads them. Weights over 5 GB are cut into shards.

    Raises:
        ConfigError: the class cannot express the composition; nothing is written then.
    """
    from huggingface_hub import save_torch_state_dict

    config = to_llava_config(model, image_token_id=image_token_id)
    encoder: Any = model.config.encoders["image"]
    name, more = "LlavaProcessor", {}
    if isinstance(encoder, Tiles.Config):
        encoder, name = encoder.encoder, "LlavaNextProcessor"
        more = {"image_processor_type": "LlavaNextImageProcessor", "do_pad": True}
        more["image_grid_pinpoints"] = config["image_grid_pinpoints"]
    processor = to_image_processor(encoder.spec) | more
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    save_torch_state_dict(to_llava_state(model, image_token_id=image_token_id), folder)
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", processor)
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": name,
            "image_token": image_token,
            "patch_size": encoder.patch,
            "vision_feature_select_strategy": config["vision_feature_select_strategy"],
            "num_additional_image_tokens": encoder.extra,
        },
    )


def export_fuyu(model: MLLM, folder: Path, *, image_token_id: int, newline_token_id: int) -> None:
    """Writes config and weights as transformers reads them.

    Raises:
        ConfigError: the class cannot express the composition; nothing is written then.
    """
    from huggingface_hub import save_torch_state_dict

    config = to_fuyu_config(model, image_token_id=image_token_id)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    save_torch_state_dict(to_fuyu_state(model, newline_token_id=newline_token_id), folder)
    write_json(folder / "config.json", config)


def export_run(run: Path, out: Path, *, chat_template: str = "") -> Conversion:
    """`quintet export`: a run's model as a LLaVA folder, its tokenizer with an image token, and parity.json.

    `chat_template` is the conversation's spelling in Jinja, for transformers and vLLM; empty keeps the tokenizer's.
    """
    _free(out)
    place = run / "model"
    if not (place / "config.json").exists():
        raise CheckpointError(f"{run} holds no finished model; give the folder of a run (`quintet train --out RUN`)")
    model = load_model(place).eval()
    if isinstance(model.llm, NoLLM):
        return _export_retrieval(model, place, out)
    tokenizer, token, newline = _tokenizer(place), IMAGE_TOKEN, None
    if (place / FACTS).exists():
        facts = LlavaFacts(**read_json(place / FACTS))
        token_id, model = facts.image_token_id, model.to(getattr(torch, facts.dtype))
        newline = facts.newline_token_id
        token = tokenizer.convert_ids_to_tokens(token_id) if tokenizer else token
    elif tokenizer:
        tokenizer.add_tokens([token], special_tokens=True)
        token_id = tokenizer.convert_tokens_to_ids(token)
    else:
        token_id = model.llm.vocab
    if newline is not None:
        export_fuyu(model, out, image_token_id=token_id, newline_token_id=newline)
    else:
        export_llava(model, out, image_token_id=token_id, image_token=token)
    if tokenizer:
        _write_tokenizer(tokenizer, out, chat_template=chat_template)
    parity = verify(model, out, image_token_id=token_id, newline_token_id=newline)
    write_json(out / "parity.json", parity.to_json())
    return _conversion(out, model, parity)


def _import_retrieval(source: Path, out: Path, captions: Mapping[str, Any] | None) -> Conversion:
    """A model without an LLM; its tokenizer, and how captions are spelt (`captions`), lie where a Retriever looks."""
    model = import_retrieval(source)
    parity = verify_retrieval(model, source)
    place = out / "model"
    save_model(model, place)
    (place / CAPTIONS).mkdir()
    _copy_tokenizer(source, place / CAPTIONS)
    if captions is not None:
        write_json(place / CAPTIONS / "processor.json", dict(captions))
    write_json(out / "parity.json", parity.to_json())
    return _conversion(place, model, parity)


def _export_retrieval(model: MLLM, place: Path, out: Path) -> Conversion:
    export_retrieval(model, out)
    _copy_tokenizer(place / CAPTIONS, out)
    parity = verify_retrieval(model, out)
    write_json(out / "parity.json", parity.to_json())
    return _conversion(out, model, parity)


def _copy_tokenizer(source: Path, place: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, place / name)


def _free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; name another --out")


# ---- pieces ------------------------------------------------------------------------------------------------------
def _conversion(place: Path, model: MLLM, parity: Parity) -> Conversion:
    files = tuple(sorted(p.name for p in place.iterdir() if p.is_file()))
    return Conversion(place, sum(p.numel() for p in model.parameters()), files, parity)


def _filled(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A LLaVA config with all the defaults of transformers filled in."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import FuyuConfig, LlavaConfig, LlavaNextConfig

    kind: Any = {"llava_next": LlavaNextConfig, "fuyu": FuyuConfig}.get(raw["model_type"], LlavaConfig)
    try:
        return kind.from_dict(raw).to_dict()
    except (StrictDataclassError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read by transformers: {error}") from None


def _picture_preparation(folder: Path, config: dict[str, Any], size: int) -> ImageSpec:
    """From the folder's picture processor; without one, what the tower was trained with."""
    kind = config["vision_config"].get("model_type", "")
    processor: dict[str, Any] = {"image_processor_type": "Siglip" if "siglip" in kind else "CLIP"}
    if (folder / "preprocessor_config.json").is_file():
        processor |= read_json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").is_file():
        processor |= read_json(folder / "processor_config.json").get("image_processor") or {}
    return image_spec(processor, size=size)


def _dtype(state: SafetensorsFolder, folder: Path) -> torch.dtype:
    """The type of the word embedding: one type for the whole model, as transformers loads it."""
    for name in state:
        if name.endswith("embed_tokens.weight"):
            return state[name].dtype
    raise CheckpointError(f"{folder} holds no word embedding (…embed_tokens.weight)")


def _write_tokenizer(tokenizer: Any, out: Path, *, chat_template: str) -> None:
    """The tokenizer, and the ids that generation begins and stops with."""
    if chat_template:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(out)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    write_json(out / "generation_config.json", {name: number for name, number in ids.items() if number is not None})


def _tokenizer(place: Path) -> Any:
    """The tokenizer beside a saved model, as transformers' class; None if there is none."""
    if not any((place / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: its tokenizer cannot be read by transformers ({error})") from None
