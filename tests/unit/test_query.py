"""Connectors that ask: the Q-Former, resamplers and abstractors, and the recipes that are made of them. About 20 s."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import picture
from quintet.components.connectors.abstractor import Abstractor, CAbstractor
from quintet.components.connectors.qformer import QFormer, Queries
from quintet.components.connectors.resampler import AttentivePooling, Resampler, sincos
from quintet.components.encoders.presets import EVA_CLIP_G
from quintet.components.encoders.weights import load_hf_state
from quintet.components.fusion.adapters import Adapters
from quintet.components.llms.magneto import Magneto
from quintet.components.roles import Context
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.data.sources.mix import Mix
from quintet.errors import ConfigError, DataError
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.run import load_recipe
from quintet.model.mllm import MLLM
from quintet.recipes import blip2, instructblip, lynx
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.objectives import OBJECTIVES
from quintet.training.optim import set_trainable
from quintet.values import Batch, Features, Layout, Media, MediaBatch, Node, Ref, Sample, Targets, Text, Tokens, Turn

PARITY = 2e-5
"""float32, states normalised to about 1; the same sums in another order. Worst measured: 3e-6."""


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def full(name: str) -> tuple[Recipe, MLLM]:
    recipe = load_recipe(name)[1]
    with torch.device("meta"):
        return recipe, recipe.model.build()


def trained(recipe: Recipe, model: MLLM) -> list[set[str]]:
    """By stage: the parts of which something learns."""
    found = []
    for stage in recipe.stages:
        set_trainable(model, stage.train)
        found.append({n for n, m in model.parts().items() if any(p.requires_grad for p in m.parameters())})
    return found


class Small:
    """A tiny model of a recipe that spells, packs and reads samples."""

    def __init__(self, recipe: Recipe) -> None:
        recipe = at_scale(recipe, "tiny")
        tokenizer = load_tokenizer(recipe.model, added=recipe.added_tokens)
        added = [tokenizer.id(token) for token in recipe.added_tokens]
        self.recipe = recipe
        self.model = build_model(recipe.model, vocab=tokenizer.vocab, added=added).eval()
        self.processor = Processor(tokenizer, recipe.template, recipe.model)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)

    def spelt(self, sample: Sample, *, stage: int | None = None) -> tuple[Tokens, str]:
        """Tokens, and what they say; a run of picture columns is <n>."""
        template = self.recipe.template if stage is None else self.recipe.stages[stage].template
        tokens = replace(self.processor, template=template).tokens(sample)
        said, at = "", 0
        for item in tokens.items:
            said += self.text(tokens.ids[at : item.start]) + f"<{item.columns}>"
            at = item.start + item.columns
        return tokens, said + self.text(tokens.ids[at:])

    def text(self, ids: Tensor) -> str:
        return self.processor.tokenizer.decode(ids.tolist(), keep_special=True)

    def batch(self, *samples: Sample) -> Batch:
        rows = [[self.processor.tokens(s)] for s in samples]
        items = [item for row in rows for tokens in row for item in tokens.items]
        media = {n: Loaded(load_image(item.ref, self.processor.spec(item.kind))) for n, item in enumerate(items)}
        return collate(rows, media, pad=self.processor.tokenizer.pad_id)

    def features(self, batch: Batch) -> Features:
        """What reaches the LLM of the pictures."""
        with self.model.inference():
            return self.model._connect("image", self.model.encode("image", batch), batch)


def shown(number: int = 0, folder: Any = None) -> Media:
    import io

    file = io.BytesIO()
    picture(number, height=32, width=32).save(file, "PNG")
    return Media("image", Ref(f"{number}.png", data=file.getvalue()))


def user(*parts: str | Media) -> Turn:
    return Turn("user", tuple(Text(p) if isinstance(p, str) else p for p in parts))


def says(text: str) -> Turn:
    return Turn("assistant", (Text(text),))


def asked(question: str = "What is it?", answer: str = "A circle.") -> Sample:
    return Sample(Node((user(shown(), question), says(answer))))


# ---- the Q-Former ------------------------------------------------------------------------------------------------
def as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Q-Former's weights of transformers under our names."""
    names = {
        ".attention.attention.": ".attention.",
        ".attention.output.dense.": ".attention.o_proj.",
        ".attention.output.LayerNorm.": ".attention.norm.",
        ".crossattention.attention.": ".cross.",
        ".crossattention.output.dense.": ".cross.o_proj.",
        ".crossattention.output.LayerNorm.": ".cross.norm.",
        ".intermediate_query.dense.": ".ffn.up.",
        ".output_query.dense.": ".ffn.down.",
        ".output_query.LayerNorm.": ".ffn.norm.",
        ".intermediate.dense.": ".ffn_words.up.",
        ".output.dense.": ".ffn_words.down.",
        ".output.LayerNorm.": ".ffn_words.norm.",
        ".query.": ".q_proj.",
        ".key.": ".k_proj.",
        ".value.": ".v_proj.",
    }
    found = {}
    for name, value in state.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        name = name.replace("encoder.layer.", "layers.").replace("embeddings.layernorm.", "norm.")
        name = name.replace("embeddings.word_embeddings.weight", "words.weight")
        name = name.replace("embeddings.position_embeddings.weight", "positions.weight")
        found[name.removeprefix("layernorm.").replace("layernorm.", "norm.")] = value
    return found


SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "encoder_hidden_size": 24,
    "vocab_size": 50,
}


@pytest.mark.parametrize("reads", [False, True])
def test_it_is_transformers_qformer(reads: bool) -> None:
    """BLIP-2's without words and InstructBLIP's with them, padded."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel, InstructBlipQFormerConfig, InstructBlipQFormerModel

    torch.manual_seed(0)
    if reads:
        theirs: Any = InstructBlipQFormerModel(InstructBlipQFormerConfig(**SHAPE)).eval()
    else:
        theirs = Blip2QFormerModel(Blip2QFormerConfig(**SHAPE)).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    config = QFormer.Config(queries=5, dim=32, depth=4, heads=4, ffn=64, norm=False, reads=reads)
    ours = Queries(config, d_in=24, vocab=50 if reads else 0)
    state = as_published(theirs.state_dict())
    if not reads:
        state["norm.weight"], state["norm.bias"] = theirs.layernorm.weight, theirs.layernorm.bias
        state = {n: v for n, v in state.items() if n not in ("weight", "bias")}
    missing, unused = ours.load_state_dict(state, strict=False)
    assert missing == ["queries"]
    assert all(n.startswith("layers.3.ffn_words.") for n in unused)
    pictures, queries = torch.randn(2, 7, 24), ours.queries.expand(2, -1, -1)
    with torch.no_grad():
        if reads:
            ids = torch.tensor([[3, 9, 4], [8, 0, 0]])
            there = torch.tensor([[1, 1, 1], [1, 0, 0]])
            seen = torch.cat([torch.ones(2, 5, dtype=torch.long), there], 1)
            wanted = theirs(ids, attention_mask=seen, query_embeds=queries, encoder_hidden_states=pictures)
            found = ours(pictures, ids, seen.bool()[:, None, None])
        else:
            wanted, found = theirs(queries, encoder_hidden_states=pictures), ours(pictures)
    torch.testing.assert_close(found[:, :5], wanted.last_hidden_state[:, :5], atol=PARITY, rtol=0)


def test_it_has_the_size_of_the_published_one() -> None:
    """With 32 queries and `ln_vision`, which transformers keeps elsewhere."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    with torch.device("meta"):
        theirs = count(Blip2QFormerModel(Blip2QFormerConfig()))
        ours = count(Queries(QFormer.Config(), d_in=1408, vocab=0))
    assert ours == theirs + 32 * 768 + 2 * 1408


def test_an_item_alone_gives_what_it_gives_beside_a_longer_instruction() -> None:
    """Absolute 1e-6 on values of about 1; measured 3e-7."""
    torch.manual_seed(0)
    config = QFormer.Config(queries=3, dim=32, depth=3, heads=4, ffn=64, reads=True)
    made: Any = config.build(d_in=8, d_out=6, vocab=20)
    pictures = Features(torch.randn(8, 8), (Layout((2, 2)), Layout((4,))))
    long, short = torch.arange(7), torch.arange(2)
    both = Features(pictures.values, (Layout((2, 2)), Layout((2, 2))))
    together = made(both, (long, short)).split()
    for item, prompt, found in zip(both.split(), (long, short), together, strict=True):
        alone = made(Features(item, (Layout((2, 2)),)), (prompt,))
        torch.testing.assert_close(alone.values, found, atol=1e-6, rtol=0)


def test_an_instruction_that_is_too_long_is_refused() -> None:
    made: Any = QFormer.Config(queries=2, dim=8, depth=1, heads=2, ffn=8, reads=True, positions=4).build(
        d_in=4, d_out=4, vocab=9
    )
    with pytest.raises(ConfigError, match="an instruction of 5 tokens; the Q-Former reads at most 4"):
        made(Features(torch.randn(2, 4), (Layout((2,)),)), (torch.zeros(5, dtype=torch.long),))


# ---- MiniGPT-4 ---------------------------------------------------------------------------------------------------
def test_minigpt4_trains_one_linear_layer_in_both_stages() -> None:
    recipe, model = full("minigpt4")
    assert trained(recipe, model) == [{"connectors.image.project"}] * 2
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(learnt / 1e6, 2) == 3.15


def test_minigpt4_has_no_prompt_at_first_and_then_its_own() -> None:
    small = Small(load_recipe("minigpt4")[1])
    sample = asked()
    assert small.spelt(sample, stage=1)[1] == "<s><4>A circle.\n"
    taught, said = small.spelt(sample, stage=2)
    assert said == "<s>###Human: <Img><4></Img> What is it? ###Assistant: A circle.###"
    assert small.text(taught.ids[taught.weight > 0]).strip() == "A circle.###"
    said = small.spelt(sample)[1]
    assert said.startswith("<s>Give the following image: <Img>ImageContent</Img>. You will be able")
    assert said.endswith("questions.###Human: <Img><4></Img> What is it?###Assistant: A circle.###")


@pytest.mark.parametrize("name", ["minigpt4", "instructblip"])
def test_what_starts_from_blip2_runs_its_second_stage_first_where_there_are_no_weights(name: str) -> None:
    """Else MiniGPT-4 reads a frozen Q-Former, and InstructBLIP writes through a frozen projection, that are noise."""
    recipe = load_recipe(name)[1]
    assert [stage.name for stage in recipe.before] == ["blip2"]
    for scale in ("starter", "tiny"):
        small = at_scale(recipe, scale)
        assert [stage.name for stage in small.stages] == ["blip2", *(stage.name for stage in recipe.stages)]
        with torch.device("meta"):
            first, *_ = trained(small, small.build())
        assert {"connectors.image.qformer", "connectors.image.project"} == first


# ---- BLIP-2 ------------------------------------------------------------------------------------------------------
def test_blip2_puts_32_features_before_a_frozen_llm_and_trains_107_million() -> None:
    recipe, model = full("blip2")
    align, generative = trained(recipe, model)
    assert align == {"connectors.image.qformer", "connectors.image.captions"}
    assert generative == {"connectors.image.qformer", "connectors.image.project"}
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(learnt / 1e6) == 107  # table 2 of the paper
    for size in ((224, 224), (364, 364)):
        assert recipe.model.columns("image", size) == 32
    assert count(model.llm) == 2_651_596_800  # facebook/opt-2.7b


def test_blip2_spells_opts_start_token_behind_the_picture() -> None:
    small = Small(load_recipe("blip2")[1])
    assert small.spelt(asked(), stage=0)[1] == "<4><s>A circle.</s>"
    assert small.spelt(asked(), stage=1)[1] == "<4></s>A circle.\n"
    assert small.spelt(asked())[1] == "<4></s>Question: What is it? Answer: A circle.\n"


def test_blip2_into_flan_t5_reads_the_picture_with_the_encoder() -> None:
    recipe = blip2.flan_t5()
    with torch.device("meta"):
        model = recipe.model.build()
    for part, published in recipe.paper.published.items():
        assert count(model.parts()[part]) == published
    small = Small(recipe)
    assert small.spelt(asked())[1] == "<4>Question: What is it? Short answer:</s> A circle.</s>"
    batch = small.batch(asked())
    media = batch.media["image"]
    other = replace(batch, media={"image": replace(media, values=(255 - media.values[0],))})
    losses = [float(OBJECTIVES["lm"](small.model, b)[0].detach()) for b in (batch, other)]
    assert abs(losses[0] - losses[1]) > 1e-3, "the decoder knows nothing of the picture"
    set_trainable(small.model, recipe.stages[1].train)
    OBJECTIVES["lm"](small.model, batch)[0].backward()
    learns = {n for n, p in small.model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    trains = ("connectors.image.qformer.", "connectors.image.project.")
    assert learns == {n for n, _ in small.model.named_parameters() if n.startswith(trains)}


def test_the_encoder_of_blip2_is_transformers() -> None:
    """All 257 tokens, before the last norm; the same layers, so equal to rounding."""
    from transformers import Blip2VisionConfig, Blip2VisionModel

    from quintet.components.encoders.hf_config import to_hf
    from quintet.components.encoders.weights import to_hf_state

    config = replace(EVA_CLIP_G.at(select="full", norm=True), width=32, depth=3, heads=4, ffn=64, trained_size=28)
    torch.manual_seed(0)
    ours = config.build().eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.2)
    theirs: Any = Blip2VisionModel(Blip2VisionConfig(**to_hf(ours.config))).eval()
    theirs.load_state_dict(to_hf_state(ours))
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(pixels), theirs(pixels).last_hidden_state, atol=PARITY, rtol=0)


def test_blip2_as_a_whole_is_transformers() -> None:
    """Logits of `Blip2ForConditionalGeneration` with OPT, from its own weights; every weight of theirs is used."""
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )

    tiny = at_scale(load_recipe("blip2")[1], "tiny").model
    vision: dict[str, Any] = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    llm: Any = tiny.llm
    text = OPTConfig(**{k: v for k, v in llm.config.items() if k != "model_type"})
    theirs: Any = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=Blip2VisionConfig(**vision, image_size=28, patch_size=14),
            qformer_config=Blip2QFormerConfig(**SHAPE),
            text_config=text,
            num_query_tokens=5,
            image_token_index=3,
        )
    ).eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    encoder = replace(
        EVA_CLIP_G.at(select="full", size=28), width=24, depth=2, heads=4, ffn=48, trained_size=28, source=""
    )
    queries = QFormer.Config(queries=5, dim=32, depth=4, heads=4, ffn=64)
    ours = MLLM.Config(encoders={"image": encoder}, connectors={"image": queries}, llm=tiny.llm).build().eval()
    state = {n.removeprefix("model."): v for n, v in theirs.state_dict().items()}
    state = {n: v for n, v in state.items() if not n.endswith("lm_head.weight")}

    def taken(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): state.pop(n) for n in [n for n in state if n.startswith(prefix)]}

    made = as_published(taken("qformer."))
    made = {("norm." + n if n in ("weight", "bias") else n): v for n, v in made.items()}
    made |= {f"norm_picture.{n}": v for n, v in taken("vision_model.post_layernorm.").items()}
    made["queries"] = state.pop("query_tokens")[0]
    connector: Any = ours.connectors["image"]
    connector.qformer.load_state_dict(made)
    connector.project.load_state_dict(taken("language_projection."))
    load_hf_state(ours.encoders["image"], taken("vision_model."))  # type: ignore[arg-type]
    ours.llm.model.model.load_state_dict({n.removeprefix("model."): v for n, v in taken("language_model.").items()})
    assert not state
    pixels = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    ids = torch.tensor([[3, 3, 3, 3, 3, 2, 9, 17, 5]])
    where = torch.arange(9)[None]
    none, zero = torch.zeros(0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    media = MediaBatch((pixels,), torch.arange(5), (5,), zero, zero, zero + 1, zero)
    targets = Targets(none, none, none.float(), none)
    batch = Batch(ids, where * 0, where * 0 + 1, where, where, targets, {"image": media})
    with torch.no_grad():
        normalised = ours.encoders["image"].normalise(pixels[None])  # type: ignore[operator]
        wanted = theirs(pixel_values=normalised, input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        found = ours.logits(ours(batch).hidden)
        inverse = replace(batch, media={"image": replace(media, values=(255 - pixels,))})
        other = ours.logits(ours(inverse).hidden)
    torch.testing.assert_close(found, wanted, atol=PARITY, rtol=0)
    assert float((other - found).abs().max()) > 1e-2, "the picture must count"


# ---- InstructBLIP ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def instruct() -> Small:
    return Small(load_recipe("instructblip")[1])


def test_instructblips_features_change_with_the_instruction_alone(instruct: Small) -> None:
    """The same picture; the other recipe's features do not."""
    batches = [instruct.batch(asked(q)) for q in ("What is it?", "Which colour has the ground?")]
    one, two = (instruct.features(b).values for b in batches)
    assert one.shape == two.shape == (4, instruct.model.llm.dim)
    assert float((one - two).abs().max()) > 0.1
    deaf = Small(load_recipe("minigpt4")[1])
    one, two = (deaf.features(deaf.batch(asked(q))).values for q in ("What is it?", "Which colour has the ground?"))
    assert torch.equal(one, two)


def test_instructblip_never_reads_the_answer(instruct: Small) -> None:
    one, two = (instruct.features(instruct.batch(asked(answer=a))).values for a in ("A circle.", "Two squares!"))
    assert torch.equal(one, two)


def test_the_words_of_an_item_are_those_of_its_turn(instruct: Small) -> None:
    """Not the frames', not another turn's, whatever stands before them in the row."""
    sample = Sample(
        Node((user(shown(0), "What is it?"), says("A dot."), user(shown(1), "And this one?"), says("A line.")))
    )
    tokens, _ = instruct.spelt(sample)
    assert [instruct.text(tokens.ids[list(i.words)]).strip() for i in tokens.items] == ["What is it?", "And this one?"]
    batch = instruct.batch(asked("Is this another?"), sample)
    media = batch.media["image"]
    words = batch.tokens.flatten()[media.words].split(list(media.word_counts))
    assert [instruct.text(w).strip() for w in words] == ["Is this another?", "What is it?", "And this one?"]


def test_a_picture_without_words_whose_questions_branch_is_refused(instruct: Small) -> None:
    branches = tuple(Node((user(q), says("Yes."))) for q in ("Is it red?", "Is it round?"))
    with pytest.raises(DataError, match="put the question into the turn of the image, or the image into each branch"):
        instruct.features(instruct.batch(Sample(Node((user(shown()),), branches))))
    # With words, answers branch; without a branch, there is nothing to read.
    answers = tuple(Node((says(a),)) for a in ("Yes.", "No."))
    instruct.features(instruct.batch(Sample(Node((user(shown(), "Is it?"),), answers))))
    instruct.features(instruct.batch(Sample(Node((user(shown()), says("Yes."))))))


def test_instructblip_trains_the_qformer_alone_or_what_was_released() -> None:
    recipe, model = full("instructblip")
    assert trained(recipe, model) == [{"connectors.image.qformer"}]
    assert trained(instructblip.recipe(released=True), model) == [
        {"connectors.image.qformer", "connectors.image.project"}
    ]


def test_instructblip_has_no_roles(instruct: Small) -> None:
    tokens, said = instruct.spelt(asked())
    assert said == "<4></s>What is it? A circle.</s>"
    assert instruct.text(tokens.ids[tokens.weight > 0]).strip() == "A circle.</s>"


def test_data_sets_are_drawn_by_the_square_root_of_their_size() -> None:
    class Rows:
        def __init__(self, name: str, rows: int) -> None:
            self.name, self.file, self.rows = name, name, rows

        def __len__(self) -> int:
            return self.rows

    sources: Any = [Rows("large", 900), Rows("small", 100)]
    assert Mix.tempered(sources, size=400).counts == {"large": 300, "small": 100}
    assert Mix.tempered(sources, power=1.0, size=400).counts == {"large": 360, "small": 40}


# ---- mPLUG-Owl ---------------------------------------------------------------------------------------------------
def test_mplug_owl_gives_64_queries_and_a_learned_end() -> None:
    """The 65th feature is the same for every picture, and it is learnt."""
    recipe, model = full("mplug_owl")
    assert recipe.model.columns("image", (224, 224)) == 65
    made: Any = recipe.model.connectors["image"].tiny().build(d_in=32, d_out=16)
    with torch.no_grad():
        one, two = made(Features(torch.randn(18, 32), (Layout((2, 4), 1),) * 2)).split()
    assert one.shape == (5, 16)
    assert torch.equal(one[-1], made.end)
    assert torch.equal(one[-1], two[-1])
    assert float((one[:-1] - two[:-1]).abs().amax(-1).min()) > 1e-3
    del model


def test_mplug_owl_changes_sides_between_its_stages() -> None:
    recipe, model = full("mplug_owl")
    first, second = recipe.stages
    set_trainable(model, first.train)
    learns = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert learns == {"encoders", "connectors"}
    assert all(p.requires_grad for p in model.encoders.parameters())
    set_trainable(model, second.train)
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learns
    assert all(n.startswith("llm.") and "lora_" in n for n in learns)
    assert {n.split(".")[-2] for n in learns} == {"q_proj", "v_proj"}


def test_mplug_owl_says_that_a_human_shows_the_picture() -> None:
    small = Small(load_recipe("mplug_owl")[1])
    assert small.spelt(asked(), stage=0)[1] == "<s><5>A circle.</s>"
    said = small.spelt(asked())[1]
    assert said.startswith("<s>The following is a conversation between a curious human and AI assistant.")
    assert said.endswith("the user's questions.\nHuman: <5>\nHuman: What is it?\nAI: A circle.</s>")


# ---- Qwen-VL -----------------------------------------------------------------------------------------------------
def test_qwen_vl_has_the_three_sizes_of_its_paper() -> None:
    """1.9 B, 0.08 B and 7.7 B (table 1); the paper counts the projection to the encoder."""
    _, model = full("qwen_vl")
    connector: Any = model.connectors["image"]
    after = count(connector.norm) + count(connector.project)
    assert round((count(model.encoders["image"]) + after) / 1e9, 1) == 1.9
    assert round((count(connector) - after) / 1e9, 2) == 0.08
    assert round(count(model.llm) / 1e9, 1) == 7.7


def test_qwen_vls_encoder_has_no_class_token() -> None:
    encoder: Any = full("qwen_vl")[1].encoders["image"]
    assert encoder.cls is None
    assert encoder.positions.shape == (256, 1664)


def test_what_trains_in_qwen_vls_three_stages() -> None:
    vision, adapter, llm = "encoders.image", "connectors.image", "llm"
    assert trained(*full("qwen_vl")) == [{vision, adapter}, {vision, adapter, llm}, {adapter, llm}]


def test_positions_are_maes() -> None:
    """Column 3 of row 1 on a grid of 4, by the formula: sines and cosines of the column, then of the row."""
    made = sincos(4, 8)[1 * 4 + 3]
    rates = torch.tensor([1.0, 0.01])
    wanted = torch.cat([f(place * rates) for place in (3.0, 1.0) for f in (torch.sin, torch.cos)])
    torch.testing.assert_close(made, wanted)
    assert torch.equal(sincos(4, 8, grid=(4, 4)), sincos(4, 8))
    assert sincos(4, 8, grid=(8, 6)).shape == (48, 8)


def test_the_resampler_knows_where_a_patch_is() -> None:
    """Patches in another order: without positions on the keys, a sum over them would be the same."""
    torch.manual_seed(0)
    made: Any = Resampler.Config(side=2, heads=2).build(d_in=8, d_out=16)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    patches = torch.randn(16, 8)
    one, two = (made(Features(p, (Layout((4, 4)),))).values.detach() for p in (patches, patches.flip(0)))
    assert float((one - two).abs().max()) > 1e-2
    with pytest.raises(ConfigError, match="let the encoder select its patches"):
        made.config.layout(Layout((4, 4), extra=1))


def test_qwen_vl_numbers_the_pictures_of_a_conversation() -> None:
    small = Small(load_recipe("qwen_vl")[1])
    assert small.spelt(asked(), stage=0)[1] == "<img><4></img>A circle.<|endoftext|>"
    assert small.spelt(asked(), stage=1)[1] == "<img><4></img>What is it? Answer: A circle.<|endoftext|>"
    two = Node(
        (user(shown(0), "One?"), says("Yes.")), tuple(Node((user(shown(n), f"{n}?"), says("."))) for n in (1, 2))
    )
    said = small.spelt(Sample(two))[1]
    start = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: <img><4></img>\n"
    assert said.startswith(start + "One?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>")
    assert said.count("Picture 2: <img>") == 2, "a branch does not count its sibling's pictures"
    ids = small.processor.tokenizer.specials
    assert {"<img>", "</img>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"} <= ids.keys()


# ---- Kosmos-1 and Kosmos-2 ---------------------------------------------------------------------------------------
def test_kosmos1_has_the_sizes_of_its_paper() -> None:
    """About 1.3 B of LLM, which with its embedding is 1.34, and about 1.6 B in all: that and CLIP's 0.3 (section 2)."""
    _, model = full("kosmos1")
    assert round(count(model.llm) / 1e9, 1) == 1.3
    assert round(count(model.encoders) / 1e9, 1) == 0.3
    assert count(model) // 10**8 == 16


def test_kosmos1_trains_its_llm_from_nothing_and_of_the_encoder_the_last_layer() -> None:
    recipe, model = full("kosmos1")
    assert not getattr(recipe.model.llm, "source", None)
    encoder: Any = model.encoders["image"]
    for stage in recipe.stages:
        set_trainable(model, stage.train)
        learns = {n.split(".")[1] for n, p in encoder.named_parameters() if p.requires_grad and "layers." in n}
        assert learns == {"23"}
        assert not encoder.positions.requires_grad
        assert all(p.requires_grad for p in (*model.llm.parameters(), *model.connectors.parameters()))


def test_kosmos_encloses_the_picture() -> None:
    small = Small(load_recipe("kosmos1")[1])
    assert small.spelt(asked(), stage=0)[1] == "<s><image><4></image>A circle.</s>"
    assert small.spelt(asked())[1] == "<s><image><4></image>Question: What is it? Answer: A circle.</s>"
    small = Small(load_recipe("kosmos2")[1])
    said = small.spelt(asked(answer="<phrase>It</phrase> is red."), stage=0)[1]
    assert said == "<s><image><4></image><grounding><phrase>It</phrase> is red.</s>"


def test_kosmos2_has_a_token_for_each_of_1024_places() -> None:
    small = Small(load_recipe("kosmos2")[1])
    places = [small.processor.tokenizer.specials[f"<patch_index_{n:04}>"] for n in range(1024)]
    assert len(set(places)) == 1024
    assert max(places) < small.model.llm.vocab


@pytest.mark.parametrize("positions", ["sinusoid", "xpos"])
def test_magneto_is_transformers_but_for_xpos(positions: str) -> None:
    from transformers.models.kosmos2.configuration_kosmos2 import Kosmos2TextConfig
    from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2TextForCausalLM

    shape: dict[str, Any] = {"vocab_size": 50, "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 4}
    theirs: Any = Kosmos2TextForCausalLM(Kosmos2TextConfig(**shape)).eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    config = Magneto.Config(vocab=50, dim=32, depth=2, heads=4, ffn=64, positions=positions)  # type: ignore[arg-type]
    ours = config.build().eval()
    names = {
        "model.embed_tokens.": "embedding.",
        "model.layer_norm.": "norm.",
        "model.layers.": "blocks.",
        ".self_attn.inner_attn_ln.": ".inner_norm.",
        ".self_attn.out_proj.": ".o_proj.",
        ".self_attn.": ".",
        ".self_attn_layer_norm.": ".attend_norm.",
        ".ffn.fc1.": ".up_proj.",
        ".ffn.fc2.": ".down_proj.",
        ".ffn.ffn_layernorm.": ".middle_norm.",
        ".final_layer_norm.": ".feed_norm.",
    }
    state = {}
    for name, value in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value
    state.pop("lm_head.weight")
    ours.load_state_dict(state)
    ids = torch.randint(2, 50, (2, 7))
    where = torch.arange(7).expand(2, -1)
    ctx = Context(enter=where * 0, exit=where * 0 + 1, order=where, positions=where)
    with torch.no_grad():
        found, wanted = ours.head(ours(ours.embed(ids), ctx)), theirs(input_ids=ids).logits
    if positions == "sinusoid":
        torch.testing.assert_close(found, wanted, atol=PARITY, rtol=0)
    else:
        assert float((found - wanted).abs().max()) > 0.1, "xPos has other positions"


def test_xpos_depends_on_distances_alone() -> None:
    """All positions 100 later: nothing moves. Absolute 1e-4 on states of about 1; measured 2e-6."""
    torch.manual_seed(0)
    model = Magneto.Config(vocab=50, dim=32, depth=2, heads=4, ffn=64, positions="xpos").build()
    embeds, where = torch.randn(1, 9, 32), torch.arange(9)[None]
    here, there = (
        model(embeds, Context(enter=where * 0, exit=where * 0 + 1, order=where, positions=where + shift))
        for shift in (0, 100)
    )
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)


def test_the_pooling_of_kosmos2_is_transformers() -> None:
    from transformers.models.kosmos2.configuration_kosmos2 import Kosmos2Config
    from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2ImageToTextProjection

    config: Any = Kosmos2Config(
        text_config={"embed_dim": 32, "attention_heads": 4}, vision_config={"hidden_size": 24}, latent_query_num=5
    )
    config.text_config._attn_implementation = "eager"
    theirs = Kosmos2ImageToTextProjection(config).eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours: Any = AttentivePooling.Config(queries=5, heads=4, unit=True).build(d_in=24, d_out=32)
    names = {"dense.": "enter.", "latent_query": "queries", "x_attn.out_proj.": "attend.o_proj.", "x_attn.": "attend."}
    state = {}
    for name, value in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value
    ours.load_state_dict(state)
    features = torch.randn(2, 7, 24)
    with torch.no_grad():
        wanted = theirs(nn.functional.normalize(features, dim=-1))[0]
        found = ours(Features(features.flatten(0, 1), (Layout((7,)),) * 2)).values
    torch.testing.assert_close(found.view(2, 5, 32), wanted, atol=PARITY, rtol=0)


# ---- MM1 ---------------------------------------------------------------------------------------------------------
def test_mm1s_connector_is_one_word_and_its_size_another() -> None:
    """Another kind leaves the 144 features and the rest of the model as they are; a larger picture is read as well."""
    recipe = load_recipe("mm1")[1]
    kinds = [Abstractor.Config(queries=144, end=False), CAbstractor.Config(side=12), Resampler.Config(side=12)]
    for connector in kinds:
        model = replace(recipe.model, connectors={"image": connector})
        assert model.columns("image", (378, 378)) == 144
        assert (model.encoders, model.llm) == (recipe.model.encoders, recipe.model.llm)
    large = replace(recipe.model, encoders={"image": recipe.model.encoders["image"].at(size=672)})  # type: ignore[attr-defined]
    assert large.columns("image", large.spec("image").size) == 144


def test_mm1_trains_everything_and_learns_every_word_of_a_page() -> None:
    recipe, model = full("mm1")
    assert trained(recipe, model) == [set(model.parts())] * 2
    small = Small(recipe)
    tokens, _ = small.spelt(asked("A dog, and then"), stage=0)
    assert small.text(tokens.ids[tokens.weight > 0]).strip().startswith("A dog, and then")


def test_a_c_abstractor_sees_neighbours_and_gives_a_square_of_any_grid() -> None:
    torch.manual_seed(0)
    made: Any = CAbstractor.Config(side=2, dim=8, depth=1).build(d_in=4, d_out=6)
    grids = (Layout((4, 6)), Layout((3, 3)))
    found = made(Features(torch.randn(33, 4), grids))
    assert found.layouts == (Layout((2, 2)),) * 2
    patches = torch.randn(16, 4)
    mixed = patches[torch.randperm(16)]
    one, two = (made(Features(p, (Layout((4, 4)),))).values.detach() for p in (patches, mixed))
    assert float((one.mean(0) - two.mean(0)).abs().max()) > 1e-3, "a mean of patches would be the same"


# ---- Lynx --------------------------------------------------------------------------------------------------------
def test_lynx_adapts_every_block_of_a_frozen_llm_or_every_second() -> None:
    recipe, model = full("lynx")
    assert trained(recipe, model) == [{"connectors.image", "fusion"}] * 3
    assert len(model.fusion.adapters) == 32  # type: ignore[arg-type]
    assert recipe.model.columns("image", (420, 420)) == 32
    few = lynx.recipe(released=True)
    with torch.device("meta"):
        fusion = few.model.build().fusion
    assert count(fusion) == few.paper.published["fusion"]
    assert len(fusion.adapters) == 16  # type: ignore[arg-type]


def test_an_adapter_stands_behind_its_block() -> None:
    """With a scale of 0 the LLM is what it was; otherwise the named blocks' outputs change, and by the formula."""
    torch.manual_seed(0)
    made: Any = Adapters.Config(every=2).build(dim=8, depth=4)
    block = nn.Linear(8, 8)
    hidden, ctx = torch.randn(1, 3, 8), None

    def run(index: int) -> Tensor:
        return made.around(index, lambda h, ctx: block(h), hidden, ctx).detach()

    plain = block(hidden).detach()
    assert torch.equal(run(1), plain)
    assert torch.equal(run(3), plain)
    adapter = made.adapters[1]
    with torch.no_grad():
        inner = adapter.up_proj(nn.functional.silu(adapter.down_proj(nn.functional.layer_norm(plain, (8,)))))
    torch.testing.assert_close(run(2), plain + inner)
    assert float(inner.abs().max()) > 0
    nn.init.zeros_(adapter.scale)
    assert torch.equal(run(2), plain)


def test_lynx_writes_its_prefix_before_the_user() -> None:
    small = Small(load_recipe("lynx")[1])
    assert small.spelt(asked())[1] == "<s><6>User: What is it?\nBot: A circle.</s>"
