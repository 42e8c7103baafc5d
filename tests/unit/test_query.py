"""Connectors that ask: the Q-Former, resamplers and abstractors, and the recipes that are made of them. About 20 s."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import picture
from quintet.components.connectors.qformer import QFormer, Queries
from quintet.components.encoders.presets import EVA_CLIP_G
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.data.sources.mix import Mix
from quintet.errors import ConfigError, DataError
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.run import load_recipe
from quintet.model.mllm import MLLM
from quintet.recipes import blip2, instructblip
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.objectives import OBJECTIVES
from quintet.training.optim import set_trainable
from quintet.values import Batch, Features, Layout, Media, Node, Ref, Sample, Text, Tokens, Turn

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
        tokenizer = load_tokenizer(recipe.model)
        self.recipe = recipe
        self.model = build_model(recipe.model, vocab=tokenizer.vocab).eval()
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


SHAPE = {
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
    assert small.spelt(sample, stage=0)[1] == "<s><4>A circle.\n"
    taught, said = small.spelt(sample, stage=1)
    assert said == "<s>###Human: <Img><4></Img> What is it? ###Assistant: A circle.###"
    assert small.text(taught.ids[taught.weight > 0]).strip() == "A circle.###"
    said = small.spelt(sample)[1]
    assert said.startswith("<s>Give the following image: <Img>ImageContent</Img>. You will be able")
    assert said.endswith("questions.###Human: <Img><4></Img> What is it?###Assistant: A circle.###")


# ---- BLIP-2 ------------------------------------------------------------------------------------------------------
def test_blip2_puts_32_features_before_a_frozen_llm_and_trains_107_million() -> None:
    recipe, model = full("blip2")
    assert trained(recipe, model) == [{"connectors.image.qformer", "connectors.image.project"}]
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(learnt / 1e6) == 107  # table 2 of the paper
    for size in ((224, 224), (364, 364)):
        assert recipe.model.columns("image", size) == 32
    assert count(model.llm) == 2_651_596_800  # facebook/opt-2.7b


def test_blip2_spells_opts_start_token_behind_the_picture() -> None:
    small = Small(load_recipe("blip2")[1])
    assert small.spelt(asked(), stage=0)[1] == "<4></s>A circle.\n"
    assert small.spelt(asked())[1] == "<4></s>Question: What is it? Answer: A circle.\n"


def test_blip2_into_flan_t5_reads_the_picture_with_the_encoder() -> None:
    recipe = blip2.flan_t5()
    with torch.device("meta"):
        model = recipe.model.build()
    for part, published in recipe.paper.published.items():
        assert count(model.parts()[part]) == published
    small = Small(recipe)
    assert small.spelt(asked())[1] == "<4>Question: What is it? Short answer: A circle.</s>"
    batch = small.batch(asked())
    media = batch.media["image"]
    other = replace(batch, media={"image": replace(media, values=(255 - media.values[0],))})
    losses = [float(OBJECTIVES["lm"](small.model, b)[0].detach()) for b in (batch, other)]
    assert abs(losses[0] - losses[1]) > 1e-3, "the decoder knows nothing of the picture"
    set_trainable(small.model, recipe.stages[0].train)
    OBJECTIVES["lm"](small.model, batch)[0].backward()
    learns = {n for n, p in small.model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    assert learns == {n for n, _ in small.model.named_parameters() if n.startswith("connectors.image.")}


def test_the_encoder_of_blip2_is_transformers() -> None:
    """All 257 tokens, before the last norm; the same layers, so equal to rounding."""
    from transformers import Blip2VisionModel

    from quintet.components.encoders.hf_config import to_hf
    from quintet.components.encoders.weights import to_hf_state

    config = replace(EVA_CLIP_G.at(select="full", norm=True), width=32, depth=3, heads=4, ffn=64, trained_size=28)
    torch.manual_seed(0)
    ours = config.build().eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.2)
    theirs: Any = Blip2VisionModel(Blip2VisionModel.config_class(**to_hf(ours.config))).eval()
    theirs.load_state_dict(to_hf_state(ours))
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(pixels), theirs(pixels).last_hidden_state, atol=PARITY, rtol=0)


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
