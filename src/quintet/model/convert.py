"""Models in and out of transformers' folders, with the logits of both compared and recorded.

    quintet import SRC --out RUN    a folder of a class in `families.py` becomes RUN/model/, RUN/parity.json
    quintet export RUN --out DIR    RUN/model/ becomes such a folder, DIR/parity.json

Nothing is downloaded, no pickle is opened, no code of a folder is run.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from quintet.components.encoders.hf_config import image_spec
from quintet.components.llms.none import NoLLM
from quintet.components.llms.weights import SafetensorsFolder, finite
from quintet.components.roles import ImageSpec
from quintet.components.tokenizer_folder import READER, TOKENIZER_FILES, has_tokenizer, read_tokenizer
from quintet.errors import CheckpointError, ConfigError
from quintet.model.blip2_retrieval import export_retrieval, import_retrieval, is_retrieval, verify_retrieval
from quintet.model.checkpoint import CAPTIONS, load_model, read_json, save_model, write_json
from quintet.model.families import FAMILIES, family, nearest_kind
from quintet.model.family import Facts, cast, materialised
from quintet.model.fuyu import NEWLINE
from quintet.model.mllm import MLLM
from quintet.model.parity import Parity, verify

__all__ = [
    "Conversion",
    "export_model",
    "export_run",
    "import_model",
    "import_run",
    "kind_of",
    "retrieves",
    "spoken_as",
]

IMAGE_TOKEN = "<image>"
FACTS = "imported.json"

_EMBEDDINGS = ("embed_tokens.weight", "shared.weight")


@dataclass(frozen=True)
class Conversion:
    """What a conversion made: where, how large, and how near the logits are."""

    place: Path
    parameters: int
    files: tuple[str, ...]
    parity: Parity


# ---- in ----------------------------------------------------------------------------------------------------------
def import_model(folder: Path) -> tuple[MLLM, Facts]:
    """The model of a transformers folder, on the CPU, in the numbers of its file.

    Raises:
        CheckpointError: no such folder, another class, or weights that do not fit its config.
        ConfigError: a tower, a text model or a setting that our parts do not have.
    """
    config = _config(folder)
    published = family(config["model_type"], where=folder / "config.json")
    tokenizer = _tokenizer(folder)
    tokens = published.tokens(config, tokenizer.get_vocab() if tokenizer else {})
    made = published.from_config(config, image=lambda size: _picture_preparation(folder, config, size))
    state = SafetensorsFolder(folder)
    dtype = _dtype(state, folder)
    model = materialised(made, dtype)
    facts = Facts(
        kind=config["model_type"],
        vocab=model.llm.vocab,
        dtype=str(dtype).removeprefix("torch."),
        source=folder.name,
        **tokens,
    )
    published.load_state(model, state, facts)
    return model.eval(), facts


def spoken_as(folder: Path) -> str:
    """The recipe whose conversations a published folder was trained on, as `load_recipe` reads it."""
    config = _config(folder)
    return family(config["model_type"], where=folder / "config.json").recipe(config)


def kind_of(folder: Path) -> str:
    """The `model_type` of a folder that transformers saved of a class in `families.py`; "" for any other folder.

    LLaVA's authors write `llava` too; theirs has no settings of a text model or a tower of their own.
    """
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    if not isinstance(config, dict) or not {"text_config", "vision_config"} & config.keys():
        return ""
    return config["model_type"] if config.get("model_type") in FAMILIES else ""


def retrieves(folder: Path) -> bool:
    """Whether a published folder compares pictures with captions and has no LLM (BLIP-2 after its first stage)."""
    return is_retrieval(read_json(folder / "config.json"))


def import_run(source: Path, out: Path, *, processor: Mapping[str, Any] | None = None) -> Conversion:
    """`quintet import`: writes RUN/model/ with the tokenizer's files beside it, and RUN/parity.json.

    Such a folder does not say how its conversations are spelt in a form that can be read back: `processor` does, the
    content of processor.json. With it and a tokenizer.json, RUN can be talked to and measured.
    """
    _free(out)
    if retrieves(source):
        return _import_retrieval(source, out, processor)
    model, facts = import_model(source)
    parity = verify(model, source, facts)
    place = out / "model"
    save_model(model, place)
    write_json(place / FACTS, asdict(facts))
    _copy_tokenizer(source, place)
    _copy_reader(source, place)
    if processor is not None:
        write_json(place / "processor.json", dict(processor))
    write_json(out / "parity.json", parity.to_json())
    return _conversion(place, model, parity)


# ---- out ---------------------------------------------------------------------------------------------------------
def export_model(model: MLLM, folder: Path, facts: Facts, *, image_token: str = IMAGE_TOKEN) -> None:
    """Writes config, weights and processor as transformers reads them. Weights over 5 GB are cut into shards.

    Raises:
        ConfigError: the class cannot express the composition; nothing is written then.
        CheckpointError: weights that are not finite; nothing is written then.
    """
    from huggingface_hub import save_torch_state_dict

    published = family(facts.kind, where=folder)
    config, state = published.to_config(model, facts), published.to_state(model, facts)
    for name, value in state.items():
        finite(value, name=name, where="the model")
    files = published.processor(model, facts, image_token=image_token) | {"config.json": config}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    save_torch_state_dict(state, folder)
    for name, content in files.items():
        write_json(folder / name, content)


def export_run(run: Path, out: Path, *, chat_template: str = "") -> Conversion:
    """`quintet export`: a run's model as a folder of transformers, its tokenizer with an image token, and parity.json.

    `chat_template` is the conversation's spelling in Jinja, for transformers and vLLM; empty keeps the tokenizer's.
    """
    _free(out)
    place = run / "model"
    if not (place / "config.json").exists():
        raise CheckpointError(f"{run} holds no finished model; give the folder of a run (`quintet train --out RUN`)")
    model = load_model(place).eval()
    if isinstance(model.llm, NoLLM):
        return _export_retrieval(model, place, out)
    tokenizer, token = _tokenizer(place), IMAGE_TOKEN
    if (place / FACTS).exists():
        facts = Facts(**read_json(place / FACTS))
        cast(model, getattr(torch, facts.dtype))
        token = tokenizer.convert_ids_to_tokens(facts.image_token_id) if tokenizer else token
    else:
        facts = _facts(model, _token_id(token, tokenizer, past=model.llm.vocab))
        if facts.kind == "fuyu":
            newline = _token_id(NEWLINE, tokenizer, past=facts.image_token_id + 1)
            facts = replace(facts, newline_token_id=newline)
    export_model(model, out, facts, image_token=token)
    if tokenizer:
        _write_tokenizer(tokenizer, out, chat_template=chat_template)
        _copy_reader(place, out)
    parity = verify(model, out, facts)
    write_json(out / "parity.json", parity.to_json())
    return _conversion(out, model, parity)


# ---- without an LLM ----------------------------------------------------------------------------------------------
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


# ---- pieces ------------------------------------------------------------------------------------------------------
def _copy_tokenizer(source: Path, place: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, place / name)


def _facts(model: MLLM, image_token_id: int) -> Facts:
    """What a model that was made here is as a published class, if any can hold it.

    Raises:
        ConfigError: none can; the message has the reason of the one that is nearest.
    """
    refused: dict[str, ConfigError] = {}
    dtype = str(next(model.llm.parameters()).dtype).removeprefix("torch.")
    for kind, published in FAMILIES.items():
        facts = Facts(kind=kind, image_token_id=image_token_id, vocab=model.llm.vocab, dtype=dtype, source="")
        try:
            return Facts(**asdict(facts) | {"kind": published.to_config(model, facts)["model_type"]})
        except ConfigError as error:
            refused[kind] = error
    kind = nearest_kind(model.config)
    raise ConfigError(
        f"no class of transformers that we write can hold this model; the nearest is {kind!r}, but {refused[kind]}; "
        "use the model through Quintet"
    )


def _token_id(token: str, tokenizer: Any, *, past: int) -> int:
    """The id of a special token, which is added to the tokenizer if it is new; `past` without a tokenizer."""
    if tokenizer is None:
        return past
    tokenizer.add_tokens([token], special_tokens=True)
    return tokenizer.convert_tokens_to_ids(token)


def _free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; name another --out")


def _conversion(place: Path, model: MLLM, parity: Parity) -> Conversion:
    files = tuple(sorted(p.name for p in place.iterdir() if p.is_file()))
    return Conversion(place, sum(p.numel() for p in model.parameters()), files, parity)


def _config(folder: Path) -> dict[str, Any]:
    """The folder's config with all the defaults of transformers filled in, if it is of a family that we read."""
    path = folder / "config.json"
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds a {type(raw).__name__}; expected an object of settings with a model_type")
    family(raw.get("model_type"), where=path)
    return _filled(raw, folder)


def _filled(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    try:
        filled = CONFIG_MAPPING[raw["model_type"]].from_dict(raw).to_dict()
    except (StrictDataclassError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read by transformers: {error}") from None
    text = raw.get("text_config")
    if isinstance(text, dict) and "tie_word_embeddings" in text:
        # transformers 5 says of every T5 that its head is tied; what the file says is what its weights are.
        filled["text_config"]["tie_word_embeddings"] = text["tie_word_embeddings"]
    return filled


def _picture_preparation(folder: Path, config: dict[str, Any], size: int) -> ImageSpec:
    """From the folder's picture processor; without one, what the tower was trained with."""
    processor: dict[str, Any] = {"image_processor_type": config["vision_config"].get("model_type", "")}
    if (folder / "preprocessor_config.json").is_file():
        processor |= read_json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").is_file():
        processor |= read_json(folder / "processor_config.json").get("image_processor") or {}
    return image_spec(processor, size=size)


def _dtype(state: SafetensorsFolder, folder: Path) -> torch.dtype:
    """The type of the word embedding: one type for the whole model, as transformers loads it."""
    for name in state:
        if name.endswith(_EMBEDDINGS):
            return state[name].dtype
    raise CheckpointError(f"{folder} holds no word embedding (…{' or …'.join(_EMBEDDINGS)})")


def _write_tokenizer(tokenizer: Any, out: Path, *, chat_template: str) -> None:
    """The tokenizer, and the ids that generation begins and stops with."""
    if chat_template:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(out)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    write_json(out / "generation_config.json", {name: number for name, number in ids.items() if number is not None})


def _copy_reader(source: Path, place: Path) -> None:
    if (source / READER).is_dir():
        shutil.copytree(source / READER, place / READER)


def _tokenizer(place: Path) -> Any:
    """The tokenizer beside a saved model, as transformers' class; None if there is none."""
    return read_tokenizer(place) if has_tokenizer(place) else None
