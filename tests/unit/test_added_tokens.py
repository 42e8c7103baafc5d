"""Tokens that a template adds: to the tokenizer, to the tables of the LLM, and as a part that learns by itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import picture_rows
from quintet.components import lora
from quintet.components.llms.hf import HFCausal
from quintet.components.llms.weights import SafetensorsFolder
from quintet.components.starter import STARTER_LLM
from quintet.data.tokenizer import Tokenizer
from quintet.errors import ConfigError
from quintet.lab.doctor import diagnose
from quintet.lab.pretrained import build_model, folder_of, load_tokenizer
from quintet.lab.recipe import load_recipe
from quintet.lab.run import Job, train
from quintet.lab.show import show
from quintet.model.checkpoint import load_model
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.serving.engine import Engine
from quintet.training.loop import Interrupted, Settings
from quintet.training.optim import set_trainable
from quintet.training.stage import Rate
from quintet.values import Batch, Media, Node, Ref, Sample, Targets, Text, Turn

ADDED = ("<im_start>", "<im_end>")
VOCAB = STARTER_LLM.vocab

MINE = '''
from dataclasses import replace
from quintet.data.template import Frame
from quintet.recipes import llava15
from quintet.training.stage import Rate

ADDED = ("<im_start>", "<im_end>")

def recipe():
    """LLaVA with two tokens of its own around a picture; nothing else learns but the connector."""
    base = llava15.recipe()
    def spelt(stage):
        frames = {"image": Frame(before=ADDED[0], after=ADDED[1])}
        template = replace(stage.template, added=ADDED, media=frames)
        return replace(stage, template=template, train={"connectors": Rate(lr=1e-3), "tokens": Rate(lr=1e-2)})
    return replace(base, stages=tuple(spelt(s) for s in base.stages))
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "framed.py"
    path.write_text(MINE)
    return path


@pytest.fixture
def recipe(mine: Path) -> Recipe:
    return load_recipe(str(mine))[1]


def tiny(recipe: Recipe, *, tied: bool = True) -> MLLM.Config:
    config = at_scale(recipe, "tiny").model
    return replace(config, llm=replace(config.llm, tie_head=tied))


def row_of(tokens: list[int]) -> Batch:
    """A row of text in which every column but the first is a target."""
    ids, n = torch.tensor([tokens]), len(tokens)
    flat = torch.arange(n)
    targets = Targets(flat[:-1], ids[0, 1:], torch.ones(n - 1), torch.zeros(n - 1, dtype=torch.int64))
    zero = torch.zeros(1, n, dtype=torch.int64)
    return Batch(ids, zero, zero + 1, flat[None], flat[None], targets, lengths=(n,))


def loss(model: MLLM, batch: Batch) -> torch.Tensor:
    return -model.target_logps(model(batch, only_targets=True), batch.targets).sum()


# ---- the tables ----------------------------------------------------------------------------------------------------
def test_a_published_llm_is_widened_and_new_rows_are_the_mean_of_the_old(recipe: Recipe) -> None:
    config = at_scale(recipe, "starter").model
    tokenizer = load_tokenizer(config, added=recipe.added_tokens)
    added = [tokenizer.id(token) for token in ADDED]
    assert (recipe.added_tokens, added) == (ADDED, [VOCAB, VOCAB + 1])
    model = build_model(config, vocab=tokenizer.vocab, added=added)
    published = SafetensorsFolder(folder_of(STARTER_LLM.source or ""))["model.embed_tokens.weight"]
    rows = model.llm.embedding.weight
    assert model.llm.vocab == VOCAB + 2
    assert torch.equal(rows[:VOCAB], published)
    assert torch.equal(rows[VOCAB:], published.float().mean(0).expand(2, -1))
    assert torch.equal(rows, build_model(config, vocab=VOCAB + 2, added=added, seed=5).llm.embedding.weight)


def test_a_tokenizer_that_exceeds_the_llm_by_more_than_was_added_is_refused(recipe: Recipe) -> None:
    config = at_scale(recipe, "starter").model
    with pytest.raises(
        ConfigError, match=f"the tokenizer has {VOCAB + 1} tokens of its own, the LLM 'starter/llm' only {VOCAB}"
    ):
        build_model(config, vocab=VOCAB + 2, added=[VOCAB + 1])


def test_rows_added_to_a_model_of_transformers_are_the_mean_too(tmp_path: Path) -> None:
    config = {"model_type": "gpt_neox", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 32, "tie_word_embeddings": False}
    small = HFCausal.Config(config=config).build()
    small.model.save_pretrained(tmp_path)
    wide = HFCausal.Config(config=config).build(vocab=67)
    wide.load(tmp_path)
    for table, published in zip(wide.tables(), small.tables(), strict=True):
        assert torch.equal(table[:64], published)
        assert torch.equal(table[64:], published.mean(0).expand(3, -1))


def test_show_counts_a_row_for_each_added_token_and_what_trains(recipe: Recipe) -> None:
    """Two tokens, 4096 wide, in the embedding and in the head."""
    framed, bare = show("framed", recipe), show("llava", load_recipe("llava15")[1])
    assert framed.parts["llm"] - bare.parts["llm"] == 2 * 2 * 4096
    assert framed.stages[0].trainable - bare.stages[0].trainable == 2 * 2 * 4096
    assert framed.stages[0].rates["tokens"] == 1e-2


# ---- the part `tokens` ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tied", [True, False])
def test_rows_learn_as_they_would_within_the_llm_and_nothing_else_moves(recipe: Recipe, tied: bool) -> None:
    """Gradients equal those of the rows when the whole LLM trains; what is folded computes the same."""
    config = tiny(recipe, tied=tied)
    whole, apart = (config.build(vocab=66, added=(64, 65)) for _ in range(2))
    apart.load_state_dict(whole.state_dict())
    batch = row_of([3, 64, 9, 65, 64, 7, 1])
    loss(whole, batch).backward()
    set_trainable(apart, {"tokens": Rate(lr=1.0)})
    assert [n for n, p in apart.named_parameters() if p.requires_grad] == [
        "tokens.rows",
        *["tokens.head_rows"] * (not tied),
    ]
    assert float(loss(whole, batch).detach()) == float(loss(apart, batch).detach())
    loss(apart, batch).backward()
    tokens = apart.tokens
    assert tokens is not None
    for table, rows in zip(whole.llm.tables(), tokens.parameters(), strict=True):
        torch.testing.assert_close(rows.grad, table.grad[64:], atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        for rows in tokens.parameters():
            rows -= rows.grad if rows.grad is not None else 0
    before = {name: p.clone() for name, p in apart.llm.named_parameters()}
    hidden, taught = apart(batch).hidden, float(loss(apart, batch).detach())
    apart.fold()
    assert apart.tokens is None
    assert torch.equal(apart(batch).hidden, hidden)
    assert float(loss(apart, batch).detach()) == pytest.approx(taught, rel=1e-6)
    for name, p in apart.llm.named_parameters():
        table = name in ("embedding.weight", "lm_head.weight")
        assert torch.equal(p[:64] if table else p, before[name][:64] if table else before[name])
        assert not table or not torch.equal(p[64:], before[name][64:])


def test_rows_learn_beside_adapters(recipe: Recipe) -> None:
    model = tiny(recipe).build(vocab=66, added=(64, 65))
    set_trainable(model, {"llm": Rate(lr=1e-4, lora=lora.Lora(rank=2, targets=("q_proj",))), "tokens": Rate(lr=1e-3)})
    loss(model, row_of([3, 64, 9, 65])).backward()
    learnt = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.grad is not None and p.requires_grad}
    assert learnt == {"rows", "lora_A", "lora_B"}
    model.fold()
    assert not any("lora" in name or "rows" in name for name in model.state_dict())


def test_tokens_of_a_recipe_that_adds_none_are_refused() -> None:
    model = at_scale(load_recipe("llava")[1], "tiny").build()
    with pytest.raises(ConfigError, match="no part 'tokens' to train: the recipe's templates add no tokens"):
        set_trainable(model, {"tokens": Rate(lr=1.0)})


def test_an_llm_that_scales_its_embeddings_is_refused() -> None:
    llm = HFCausal.Config(
        config={"model_type": "gptj", "vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4}
    ).build()
    assert llm.model.get_output_embeddings().bias is not None
    with pytest.raises(ConfigError, match="its head has a bias"):
        llm.tables()


# ---- a run ---------------------------------------------------------------------------------------------------------
def job(recipe: Path, out: Path, data: Path, **more: object) -> Job:
    files = {"pretrain": data, "instruct": data}
    settings = Settings(precision="fp32", features="off", **more)  # type: ignore[arg-type]
    return Job(recipe=str(recipe), scale="tiny", out=out, data=files, settings=settings, resume=bool(more))


def test_a_run_trains_saves_reloads_and_answers_with_its_tokens(mine: Path, tmp_path: Path) -> None:
    data = picture_rows(tmp_path / "data", 5)
    train(job(mine, tmp_path / "run", data))
    model, tokenizer = load_model(tmp_path / "run" / "model"), Tokenizer.load(tmp_path / "run" / "model")
    ids = [tokenizer.id(token) for token in ADDED]
    assert ids == [VOCAB, VOCAB + 1]
    assert model.llm.vocab == VOCAB + 2
    assert "tokens.safetensors" not in {p.name for p in (tmp_path / "run" / "model").iterdir()}
    start = build_model(model.config, vocab=VOCAB + 2, added=ids).llm
    assert torch.equal(model.llm.embedding.weight[:VOCAB], start.embedding.weight[:VOCAB])
    assert not torch.allclose(model.llm.embedding.weight[VOCAB:], start.embedding.weight[VOCAB:])
    medium = Media("image", Ref("1.png", path=tmp_path / "data" / "pictures" / "1.png"))
    asked = Sample(Node((Turn("user", (medium, Text("Is <im_start> here?"))),)))
    engine = Engine.open(tmp_path / "run")
    spelt = engine.processor.tokens(asked, open=True).ids.tolist()
    assert [spelt.count(i) for i in ids] == [1, 1], "the user's own word is spelt out"
    assert isinstance(engine.answer([asked], max_tokens=3)[0], str)
    assert engine.processor.text([*ids, tokenizer.id("</s>")]) == "<im_start><im_end>"


def test_a_stopped_run_goes_on_bit_for_bit(mine: Path, tmp_path: Path) -> None:
    data = picture_rows(tmp_path / "data", 5)
    train(job(mine, tmp_path / "whole", data))
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(job(mine, tmp_path / "cut", data, stop_after=1))
    train(job(mine, tmp_path / "cut", data, save_steps=1))
    whole, cut = (
        {p.name: p.read_bytes() for p in sorted((tmp_path / n / "model").iterdir())} for n in ("whole", "cut")
    )
    assert whole == cut


def test_the_doctor_finds_nothing_to_say(mine: Path, tmp_path: Path) -> None:
    data = picture_rows(tmp_path / "data", 6)
    recipe = load_recipe(str(mine))[1]
    short = replace(recipe, stages=recipe.stages[-1:])
    diagnosis = diagnose(short, scale="tiny", data=data, samples=3, limit=6)
    assert not diagnosis.findings
    shown = "".join(segment.text for segment in diagnosis.samples[0].segments)
    assert all(token in shown for token in ADDED)


def test_a_model_with_tokens_is_exported_for_transformers(mine: Path, tmp_path: Path) -> None:
    from quintet.model.convert import export_run

    train(job(mine, tmp_path / "run", picture_rows(tmp_path / "data", 5)))
    made = export_run(tmp_path / "run", tmp_path / "out")
    assert made.parity.max_abs_logit_difference < 1e-4
    vocab = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]["vocab_size"]
    assert vocab >= VOCAB + 2
    assert isinstance(load_model(tmp_path / "run" / "model"), nn.Module)
