"""`quintet starter build`: makes the parts that ship with the package, and the card that says what they are.

OUT/vision/   config.json, model.safetensors              as transformers saves a CLIPVisionModel
OUT/vision_heads.safetensors                              the linear readers that score it
OUT/llm/      config.json, model.safetensors, tokenizer   as transformers saves a LlamaForCausalLM
OUT/card.json, OUT/CARD.md
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from quintet.components.encoders.hf_config import to_hf as vision_to_hf
from quintet.components.llms.hf_config import to_hf as llm_to_hf
from quintet.components.llms.weights import to_hf_state
from quintet.components.starter import STARTER_LLM, STARTER_VISION
from quintet.data.pipeline import Source
from quintet.data.processor import Processor
from quintet.data.scenes import Question, World
from quintet.data.template import DECIMALS
from quintet.data.tokenizer import Tokenizer
from quintet.evaluation.metrics.boxes import iou
from quintet.lab.starter.spellings import SPELLINGS, SpeltScenes, spelling_scores
from quintet.lab.starter.text import SPELT, TextScenes, train_tokenizer
from quintet.lab.starter.told import Composed, ToldTokenizer
from quintet.lab.starter.vision import VisionSchedule, make_pictures, train_vision, vision_scores
from quintet.model.checkpoint import write_json
from quintet.model.mllm import MLLM
from quintet.recipes._templates import VICUNA_V1
from quintet.serving.engine import Engine
from quintet.training.folder import RunFolder
from quintet.training.hardware import prepare_cpu
from quintet.training.loop import Settings, train_stage
from quintet.training.stage import Data, Rate, Stage
from quintet.values import Node, Region, Sample, Text, Turn

__all__ = ["LlmSchedule", "Phase", "build_llm", "build_vision", "text_scores", "write_card"]

Note = Callable[[str], None]


@dataclass(frozen=True)
class Phase:
    """A stretch of reading: `steps` of `batch` scenes. `most`, `forms`, `notes`, `plain`: see `TextScenes`.

    With `spellings` it reads `SpeltScenes`, in the templates of many systems; `notes` and `plain` then say nothing.
    """

    name: str
    steps: int
    most: tuple[int, ...]
    forms: tuple[float, float, float]
    notes: float = 0.0
    plain: float = 0.0
    spellings: bool = False
    schedule: Literal["cosine", "constant"] = "cosine"
    batch: int = 16
    lr: float = 3e-3
    """Of embeddings and norms, by AdamW."""
    muon_lr: float = 0.015
    """Of all matrices between, by Muon."""


@dataclass(frozen=True)
class LlmSchedule:
    """How long the LLM reads, and what."""

    phases: tuple[Phase, ...] = (
        Phase("notes", 600, (1, 2, 3, 4), (0.0, 0.85, 0.15), notes=1.0, schedule="constant", batch=24),
        Phase("questions", 1900, (1, 2, 3, 4, 4), (0.3, 0.5, 0.2), notes=0.25, plain=0.1),
        Phase("spellings", 900, (1, 2, 3, 4, 4), (0.3, 0.55, 0.15), spellings=True, batch=48, lr=1e-3, muon_lr=5e-3),
    )
    turns: int = 10
    seed: int = 1
    vocab: int = 2048
    """Tokens at most; merging stops when no pair of Scenes' words is left."""
    texts: int = 3000
    """Texts that the tokenizer is trained on."""
    scored: int = 150
    """Held-out texts that the card's scores are of, and scenes that are asked about in each spelling."""


def build_vision(out: Path, schedule: VisionSchedule, *, note: Note) -> dict[str, Any]:
    """Trains the vision encoder and writes OUT/vision; returns what the card says of it."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    prepare_cpu()
    torch.manual_seed(schedule.seed)
    config = CLIPVisionConfig(**_vision_settings())
    # Plain products with a softmax: on a CPU without AMX the fused kernel takes twice the time in bf16.
    config._attn_implementation = "eager"
    model = CLIPVisionModel(config)

    def progress(step: int, share: float, loss: float, rate: float) -> None:
        note(f"vision: step {step} of {schedule.steps}, loss {loss:.3f}, {rate:.0f} pictures/s")

    facts, heads = train_vision(model, schedule, progress=progress)
    model.eval()
    shipped = {
        name: value.to(torch.bfloat16) for name, value in model.state_dict().items() if value.is_floating_point()
    }
    model.load_state_dict({name: value.float() for name, value in shipped.items()}, strict=False)
    scores = vision_scores(model, heads, make_pictures(1000, seed=7, split="val"))
    # The whole tower is written, also what is after the layer that LLaVA reads.
    _write(out / "vision", vision_to_hf(replace(STARTER_VISION, keep_unused=True)), shipped)
    save_file({n: t.detach().contiguous() for n, t in heads.state_dict().items()}, out / "vision_heads.safetensors")
    return {"schedule": asdict(schedule), **facts, "scores_on_1000_held_out_pictures": scores}


def _vision_settings() -> dict[str, Any]:
    c = STARTER_VISION
    return {
        "hidden_size": c.width, "intermediate_size": c.ffn, "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "image_size": c.trained_size, "patch_size": c.patch, "hidden_act": c.act, "layer_norm_eps": c.eps,
    }  # fmt: skip


def build_llm(out: Path, schedule: LlmSchedule, *, run: Path, note: Note) -> dict[str, Any]:
    """Trains tokenizer and LLM on text, through the project's own loop, and writes OUT/llm.

    `run` is the folder of that training: a stopped one goes on.
    """
    prepare_cpu()
    plain = train_tokenizer(vocab=schedule.vocab, texts=schedule.texts)
    tokenizer = ToldTokenizer(plain)
    config = MLLM.Config(llm=replace(STARTER_LLM, vocab=tokenizer.vocab, source=None))
    model = _fresh(config, tokenizer, seed=schedule.seed)
    start, tokens, loss = time.monotonic(), 0, 0.0

    def progress(row: dict[str, Any]) -> None:
        if row["step"] % 20 == 0:
            rate = row["tokens"] / row["step_seconds"]
            at = f"step {row['step']} of {row['steps']}"
            note(f"llm: {row['stage']}, {at}, loss {row['loss']:.4f}, {rate:.0f} tokens/s")

    for number, phase in enumerate(schedule.phases):
        source = _source(phase, schedule, seed=schedule.seed + number)
        result = train_stage(
            model, _stage(phase), source, tokenizer, run=RunFolder(run), settings=Settings(), progress=progress
        )
        tokens, loss = tokens + result.tokens, result.last_loss
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    scores = text_scores(Engine(model, Processor(tokenizer, VICUNA_V1, config)), n=schedule.scored)
    spellings = spelling_scores(model, tokenizer, n=schedule.scored)
    state = {name: value.to(torch.bfloat16) for name, value in to_hf_state(model.llm).items()}
    _write(out / "llm", llm_to_hf(replace(STARTER_LLM, vocab=tokenizer.vocab, source=None)), state)
    plain.save(out / "llm")
    facts = {"schedule": asdict(schedule), "tokens": tokens, "vocab": tokenizer.vocab}
    seconds = round(time.monotonic() - start)
    facts |= {"seconds": seconds, "last_loss": loss, "scores_on_held_out_texts": scores}
    return facts | {"scores_by_spelling": spellings}


def _source(phase: Phase, schedule: LlmSchedule, *, seed: int) -> Source:
    texts = phase.steps * phase.batch
    if phase.spellings:
        return SpeltScenes(texts, seed=seed, most=phase.most, forms=phase.forms)
    return TextScenes(
        texts, seed=seed, most=phase.most, turns=schedule.turns, forms=phase.forms, notes=phase.notes, plain=phase.plain
    )


def _stage(phase: Phase) -> Stage:
    return Stage(
        name=phase.name, data=Data(name="scenes as text", kind="text"),
        template=SPELLINGS if phase.spellings else SPELT,
        train={"llm": Rate(lr=phase.lr)}, optimizer="muon", muon_lr=phase.muon_lr, betas=(0.9, 0.95),
        batch=phase.batch, steps=phase.steps, schedule=phase.schedule, row=640, micro=8192, warmup=0.03, final=0.02,
    )  # fmt: skip


@torch.no_grad()
def _fresh(config: MLLM.Config, tokenizer: Tokenizer, *, seed: int) -> MLLM:
    """A model to start from: weights in proportion to their width, told words composed of plain words.

    The usual deviation of 0.02 is for widths of thousands; at 192 it leaves attention flat for hundreds of steps. In
    the second and third layer two heads begin by looking for what resembles them and by passing it on: queries
    equal keys, and what is read is written back as it was (Trockman & Kolter 2023, arXiv:2305.09828, "Mimetic
    Initialization of Self-Attention Layers").
    """
    torch.manual_seed(seed)
    model = config.build()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter.normal_(std=parameter.shape[1] ** -0.5 * (0.3 if writes else 1.0))
    width, dim = STARTER_LLM.dim // STARTER_LLM.heads, STARTER_LLM.dim
    for block in list(model.llm.blocks)[1:3]:
        for head in range(2):
            rows = slice(head * width, (head + 1) * width)
            looked, passed = (torch.linalg.qr(torch.randn(dim, width))[0].T for _ in range(2))
            block.attn.q_proj.weight[rows] = block.attn.k_proj.weight[rows] = looked
            block.attn.v_proj.weight[rows] = passed
            block.attn.o_proj.weight[:, rows] = 0.5 * passed.T
    model.llm.embedding = Composed(model.llm.embedding, tokenizer)
    return model


def text_scores(engine: Engine, *, n: int, seed: int = 9) -> dict[str, float]:
    """Share of questions about `n` held-out scenes, told as text, that are answered exactly, by form.

    `boxes` is the share of boxes that overlap the true one by half (IoU); the other shares leave boxes out.
    """
    source = TextScenes(n, seed=seed, split="val")
    asked: list[Sample] = []
    truths: list[tuple[str, Question]] = []
    for i in range(n):
        form, told, said = source.questions(i)
        for question in said:
            asked.append(Sample(Node((Turn("user", (Text(f"{told}\n{question.text}"),)),))))
            truths.append((form, question))
    answers = engine.answer(asked)
    right: dict[str, list[bool]] = {form: [] for form in ("map", "things", "words", "boxes")}
    for answer, (form, question) in zip(answers, truths, strict=True):
        if question.kind == "grounding":
            [box] = question.regions
            said = [each.bounds for each in DECIMALS.parse(answer)]
            right["boxes"].append(any(iou(each, Region("box", box).bounds) >= 0.5 for each in said))
        else:
            right[form].append(answer == question.answer)
    plain = [hit for form, hits in right.items() if form != "boxes" for hit in hits]
    scores = {form: sum(hits) / max(1, len(hits)) for form, hits in right.items()}
    return {"all": sum(plain) / len(plain), **scores, "n": len(plain)}


def _write(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    tensors = {name: value.detach().contiguous() for name, value in sorted(state.items())}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_card(out: Path, facts: dict[str, Any]) -> None:
    """OUT/card.json for programs, OUT/CARD.md for people; parts that were not built keep what they have."""
    path = out / "card.json"
    facts = (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}) | facts
    write_json(path, facts)
    lines = ["# Starter parts", "", "Made by `quintet starter build` from Scenes alone; licence Apache-2.0.", ""]
    about = {
        "vision": "A CLIP-shaped ViT for 64 × 64 pixels. It learnt from pictures and their labels, never from words.",
        "llm": "A Llama-shaped decoder and its byte-level tokenizer. It read scenes as text, and never saw a picture.",
    }
    for part, words in about.items():
        if part not in facts:
            continue
        lines += [f"## {part}", "", words, "", "| fact | value |", "|---|---|"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in facts[part].items()] + [""]
    lines += [
        "What they are for: showing the whole arc on a laptop and testing every recipe. What they are not: anything",
        f"that knows the world. Pictures outside Scenes ({World()}) are foreign to them until they are tuned.",
        "",
    ]
    (out / "CARD.md").write_text("\n".join(lines), encoding="utf-8")


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_cell, value)) if any(isinstance(each, dict) for each in value) else str(list(value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
