"""Feature-level fusion: who looks at which picture, what begins as nothing, and what the four systems are. About 10 s.

Contract tests hold the recipes to packing, trees, padding and caching; here is what they cannot see.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from conftest import byte_tokenizer
from quintet.components import lora
from quintet.components.connectors.linear import Linear
from quintet.components.connectors.perceiver import Perceiver
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.components.fusion.token import TokenFusion
from quintet.components.llms.decoder import Decoder
from quintet.components.llms.hf import HFCausal
from quintet.data.template import Template
from quintet.errors import ConfigError
from quintet.lab.run import load_recipe
from quintet.model.generate import Sampling, generate
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.optim import set_trainable
from quintet.values import Batch, Features, Layout, Media, MediaBatch, Node, Ref, Sample, Targets, Text, Turn

NAMES = ("flamingo", "open_flamingo", "multimodal_gpt", "idefics")
FUSION = GatedCrossAttention.Config(every=2, heads=2, head_dim=8, act="squared_relu")
LLM = Decoder.Config(vocab=300, dim=16, depth=3, heads=2, kv_heads=1, ffn=16)
CONFIG = MLLM.Config(
    encoders={"image": replace(CLIP_L_336.tiny(), image=replace(CLIP_L_336.tiny().spec, fit="native", multiple=8))},
    connectors={"image": Linear.Config()},
    fusion=FUSION,
    llm=LLM,
)


@cache
def tiny(name: str) -> Recipe:
    return at_scale(load_recipe(name)[1], "tiny")


def full(name: str) -> MLLM:
    with torch.device("meta"):
        return load_recipe(name)[1].build()


def opened(model: nn.Module) -> nn.Module:
    """The same with its gates open."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(0.7)
    return model.eval()


def built(config: MLLM.Config = CONFIG) -> MLLM:
    torch.manual_seed(0)
    return config.build()


def batch(
    *rows: str, sizes: tuple[tuple[int, int], ...] = ((16, 16), (8, 24), (32, 8), (24, 24)), seed: int = 0
) -> Batch:
    """A conversation a row: letters are words, `*` is a picture's marker. Pictures take sizes in turn."""
    generator = torch.Generator().manual_seed(seed)
    width = max(map(len, rows))
    place = [(r, c) for r, row in enumerate(rows) for c, letter in enumerate(row) if letter == "*"]
    tokens = torch.tensor([[ord(letter) for letter in row.ljust(width)] for row in rows])
    columns = torch.arange(width).expand(len(rows), -1).contiguous()
    padding = torch.stack([torch.arange(width) >= len(row) for row in rows]).long()
    none = torch.zeros(0, dtype=torch.int64)
    media = MediaBatch(
        values=tuple(
            torch.randint(0, 256, (3, *sizes[n % len(sizes)]), dtype=torch.uint8, generator=generator)
            for n in range(len(place))
        ),
        slots=torch.tensor([r * width + c for r, c in place]),
        counts=(1,) * len(place),
        row=torch.tensor([r for r, _ in place]),
        enter=torch.zeros(len(place), dtype=torch.int64),
        exit=torch.ones(len(place), dtype=torch.int64),
        order=torch.tensor([c for _, c in place]),
    )
    return Batch(
        tokens=tokens,
        enter=padding,
        exit=padding + 1,
        order=columns,
        positions=columns,
        targets=Targets(none, none, none.float(), none),
        media={"image": media} if place else {},
        lengths=tuple(map(len, rows)),
    )


def looked(config: GatedCrossAttention.Config, made: Batch) -> Tensor:
    """bool[B, T, N]: does the gated block's output at a column depend on the features of item n? By its gradient."""
    torch.manual_seed(0)
    fusion = opened(config.build(dim=16, depth=2))
    assert isinstance(fusion, GatedCrossAttention)
    media = made.media["image"]
    layouts = tuple(Layout((n + 1,)) for n in range(len(media.counts)))
    values = torch.randn(sum(la.count for la in layouts), 16, requires_grad=True)
    view = fusion.view(fusion.memory({"image": Features(values, layouts)}, made), made)
    out = fusion.blocks[0](torch.randn(*made.tokens.shape, 16), view)
    seen = torch.zeros(*made.tokens.shape, len(layouts), dtype=torch.bool)
    for r, row in enumerate(out):
        for c, column in enumerate(row):
            (gradient,) = torch.autograd.grad(column.sum(), values, retain_graph=True)
            seen[r, c] = torch.stack([(g != 0).any() for g in gradient.split([la.count for la in layouts])])
    return seen


def drawn(seen: Tensor) -> list[str]:
    """A row's columns: the numbers of the items that each sees."""
    return ["".join(str(n) for n in range(seen.shape[1]) if column[n]) for column in seen]


# ---- who looks at what -------------------------------------------------------------------------------------------
def test_a_column_looks_at_the_last_picture_before_it_and_at_no_other() -> None:
    """Columns: a word before any picture, a marker, words, two markers, a word; a second row with a picture of its own.

    Pictures are of 1, 2, 3 and 4 features, so nothing lines up by chance. Padding sees nothing.
    """
    seen = looked(FUSION, batch("a*bc**d", "e*f"))
    assert drawn(seen[0]) == ["", "0", "0", "0", "1", "2", "2"]
    assert drawn(seen[1]) == ["", "3", "3", "", "", "", ""]


def test_all_pictures_before_a_column_are_looked_at_if_so_set() -> None:
    seen = looked(replace(FUSION, look="all"), batch("a*bc**d", "e*f"))
    assert drawn(seen[0]) == ["", "0", "0", "0", "01", "012", "012"]
    assert drawn(seen[1]) == ["", "3", "3", "", "", "", ""]


@pytest.mark.parametrize(("look", "last"), [("last", "1"), ("all", "01")])
def test_in_a_tree_a_branch_sees_the_pictures_of_its_path_alone(look: str, last: str) -> None:
    """Root `*a`, then branches `b`, `*c` and `d`: the second has a picture that its siblings do not see."""
    made = batch("*ab*cd")
    enter, end = torch.tensor([[0, 0, 1, 2, 2, 3]]), torch.tensor([[4, 4, 2, 3, 3, 4]])
    media = replace(made.media["image"], enter=torch.tensor([0, 2]), exit=torch.tensor([4, 3]))
    made = replace(made, enter=enter, exit=end, media={"image": media})
    config = replace(FUSION, look=look)  # type: ignore[arg-type]
    assert drawn(looked(config, made)[0]) == ["0", "0", "0", last, last, "0"]


def test_packed_items_with_different_numbers_of_features_give_what_each_gives_alone() -> None:
    """Two samples side by side, as intervals of one row; pictures of 4, 3, 4 and 9 patches. Absolute 1e-5."""
    model = opened(built())
    assert isinstance(model, MLLM)
    row = batch("a*b*c", "*de*f")
    whole = batch("a*b*c*de*f")
    second = (torch.arange(10) >= 5).long()[None]
    media = whole.media["image"]
    own = second[0, media.order]
    whole = replace(
        whole,
        enter=second,
        exit=second + 1,
        positions=torch.arange(10)[None] % 5,
        media={"image": replace(media, enter=own, exit=own + 1)},
    )
    with model.inference():
        apart, packed = model(row).hidden, model(whole).hidden
    torch.testing.assert_close(packed.view(2, 5, 16), apart, atol=1e-5, rtol=0)
    assert len({la.count for la in model.encode("image", row).layouts}) > 1


def test_kinds_of_media_stand_side_by_side() -> None:
    """The pictures of two rows told apart as two kinds, whose rows then alternate: the same to the bit."""
    made = batch("a*b*", "*c*d")
    torch.manual_seed(0)
    fusion = opened(FUSION.build(dim=16, depth=2))
    assert isinstance(fusion, GatedCrossAttention)
    layouts = tuple(Layout((n + 1,)) for n in range(4))
    pieces, media = torch.randn(10, 16).split([1, 2, 3, 4]), made.media["image"]
    hidden = torch.randn(2, 4, 16)

    def out(kinds: dict[str, list[int]]) -> Tensor:
        features = {
            k: Features(torch.cat([pieces[i] for i in n]), tuple(layouts[i] for i in n)) for k, n in kinds.items()
        }
        places = {k: {v: getattr(media, v)[n] for v in ("row", "enter", "exit", "order")} for k, n in kinds.items()}
        split = replace(made, media={k: replace(media, **places[k]) for k in kinds})
        with torch.no_grad():
            return fusion.blocks[0](hidden, fusion.view(fusion.memory(features, split), split))

    assert torch.equal(out({"image": [0, 2], "video": [1, 3]}), out({"image": [0, 1, 2, 3]}))


# ---- what begins as nothing --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_at_the_start_the_logits_are_the_llms_to_the_bit(name: str) -> None:
    """Same columns, with pictures, with others, and through the LLM alone; with open gates they differ."""
    made, other = batch("ab*cd*e", "fg*h", sizes=((32, 32),)), batch("ab*cd*e", "fg*h", sizes=((32, 32),), seed=1)
    model = built(tiny(name).model)
    with model.inference():
        marked = model.fusion.inputs(model.llm.embed(made.tokens), _features(model, made), made)
        alone = replace(model.config, encoders={}, connectors={}, fusion=TokenFusion.Config()).build()
        alone.llm = model.llm
        alone.llm.embed = lambda tokens: marked
        wanted = alone.logits(alone(replace(made, media={})).hidden)
        del alone.llm.embed
        assert torch.equal(model.logits(model(made).hidden), wanted)
        assert torch.equal(model.logits(model(other).hidden), wanted)
        opened(model)
        assert (model.logits(model(made).hidden) - wanted).abs().max() > 1e-2
        assert not torch.equal(model(made).hidden, model(other).hidden)


def _features(model: MLLM, made: Batch) -> dict[str, Features]:
    return {"image": model.connectors["image"](model.encode("image", made))}


def test_a_column_without_a_picture_gets_nothing_from_the_attention() -> None:
    """With the feed-forward gate closed the first two columns stay as they are, exactly; those behind do not."""
    model = built()
    with torch.no_grad():
        model.fusion.blocks[0].attend_gate.fill_(1.0)
        made, hidden = batch("ab*c"), torch.randn(1, 4, 16)
        fusion = model.fusion
        out = fusion.blocks[0](hidden, fusion.view(fusion.memory(_features(model, made), made), made))
        assert torch.equal(out[:, :2], hidden[:, :2])
        assert bool((out[:, 2:] != hidden[:, 2:]).any(-1).all())
        assert torch.equal(fusion.blocks[0](hidden, fusion.view(None, made)), hidden)


def test_text_without_pictures_runs_every_block_and_adds_nothing_of_them() -> None:
    """What sharded training needs: every weight has a gradient, and that of what only pictures reach is zero."""
    model = opened(built())
    assert isinstance(model, MLLM)
    text = batch("abcd")
    plain = model(text).hidden
    model.run_all_parts = True
    hidden = model(text).hidden
    assert torch.equal(hidden, plain)
    hidden.sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("llm.lm_head"):
            continue
        assert parameter.grad is not None, name
        if name.startswith(("encoders", "connectors", "fusion.marker")) or ".attn." in name.partition("fusion.")[2]:
            assert not parameter.grad.any(), name


# ---- memory and cache --------------------------------------------------------------------------------------------
def test_keys_and_values_of_pictures_are_computed_once_for_an_answer() -> None:
    """Two gated blocks before blocks 0 and 2; eight tokens; without a cache the answer is the same."""
    model = opened(built())
    assert isinstance(model, MLLM)
    calls: list[int] = []
    for block in model.fusion.blocks:
        block.attn.k_proj.register_forward_hook(lambda *_: calls.append(1))
    made = batch("ab*c", "d*ef")
    found = generate(model, made, stop=lambda ids: False, sampling=Sampling(max_tokens=8))
    assert len(calls) == len(model.fusion.blocks) == 2
    again: list[list[int]] = [[], []]
    for _ in range(8):
        rows = ["ab*c", "d*ef"]
        longer = batch(*(row + "x" * len(again[0]) for row in rows))
        for r, ids in enumerate(again):
            longer.tokens[r, 4:] = torch.tensor(ids)
        with model.inference():
            logits = model.logits(model(longer).hidden[:, -1])
        for ids, token in zip(again, logits.argmax(-1).tolist(), strict=True):
            ids.append(token)
    assert found == again
    other = generate(model, batch("ab*c", "d*ef", seed=3), stop=lambda ids: False, sampling=Sampling(max_tokens=8))
    assert other != found, "answers that do not depend on the picture prove nothing"


# ---- settings ----------------------------------------------------------------------------------------------------
def test_gated_blocks_stand_where_they_are_said_to() -> None:
    """Of seven blocks: every third from the third on are the third and the sixth."""
    fusion = opened(replace(FUSION, every=3, first=2).build(dim=16, depth=7))
    assert isinstance(fusion, GatedCrossAttention)
    made = batch("abc")
    view = fusion.view(None, made)
    hidden = torch.randn(1, 3, 16)

    class Ctx:
        memory = view

    changed = []
    for index in range(7):
        with torch.no_grad():
            out = fusion.around(index, _Same(), hidden, Ctx())  # type: ignore[arg-type]
        changed.append(not torch.equal(out, hidden))
    assert [i for i, c in enumerate(changed) if c] == [2, 5]


class _Same(nn.Module):
    def forward(self, hidden: Tensor, ctx: object) -> Tensor:
        return hidden


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="every is 0; it must be at least 1"):
        replace(FUSION, every=0)
    with pytest.raises(ConfigError, match="the first gated block stands before block 9, the LLM has 3"):
        replace(FUSION, first=9).build(dim=16, depth=3)
    with pytest.raises(ConfigError, match="latents is 0; a resampler needs at least 1"):
        Perceiver.Config(latents=0, heads=1, head_dim=1, act="gelu")


def test_a_model_of_transformers_is_refused() -> None:
    llm = HFCausal.Config(config={"model_type": "gpt_neox"}).tiny()
    model = built(replace(CONFIG, llm=llm))
    with pytest.raises(ConfigError, match="no fusion can stand around"):
        model(batch("ab*c"))


# ---- the resampler -----------------------------------------------------------------------------------------------
def _resample(config: Perceiver.Config, values: Tensor, layout: Layout) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return config.build(d_in=12, d_out=10).eval()(Features(values, (layout,))).values


def test_any_number_of_features_becomes_the_latents() -> None:
    config = Perceiver.Config(latents=5, depth=2, heads=2, head_dim=4, act="gelu")
    for layout in (Layout((2, 3)), Layout((7, 7), extra=1), Layout((1,))):
        assert config.layout(layout) == Layout((5,))
        assert _resample(config, torch.randn(layout.count, 12), layout).shape == (5, 10)


def test_patches_are_a_set_and_frames_are_not() -> None:
    """Without time the order of patches is nothing to it; with it, two frames may not change places."""
    config = Perceiver.Config(latents=3, depth=2, heads=2, head_dim=4, act="relu", qk_norm=True)
    values, layout = torch.randn(8, 12), Layout((2, 2, 2))
    swapped = torch.cat([values[4:], values[:4]])
    torch.testing.assert_close(_resample(config, swapped, layout), _resample(config, values, layout), atol=1e-5, rtol=0)
    timed = replace(config, frames=2)
    assert (_resample(timed, swapped, layout) - _resample(timed, values, layout)).abs().max() > 1e-3
    assert torch.equal(_resample(timed, values, layout), _resample(replace(timed, frames=2), values, layout))


def test_more_frames_than_embeddings_get_those_in_between() -> None:
    """Of two embeddings 0 and 1, three frames get 0, a half and 1 (two features each, after one that has no place)."""
    made = Perceiver.Config(depth=1, heads=1, head_dim=4, act="gelu", frames=2).build(d_in=4, d_out=4)
    with torch.no_grad():
        assert made.time is not None
        made.time.copy_(torch.tensor([[0.0] * 4, [1.0] * 4]))
        assert made._times(Layout((3, 1, 2), extra=1))[:, 0].tolist() == [0, 0, 0, 0.5, 0.5, 1, 1]


# ---- the four systems --------------------------------------------------------------------------------------------
def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_flamingos_figures() -> None:
    """The paper's own widths: the resampler 194 M behind 3072 channels, gated blocks of 1.2, 1.6 and 10 B (3, 9, 80 B).

    Rounded as printed. 9B: 32 layers of 4096, see the recipe.
    """
    model = load_recipe("flamingo")[1].model
    with torch.device("meta"):
        resampler = model.connectors["image"].build(d_in=3072, d_out=1536)
        assert round(_count(resampler) / 1e6) == 194
        assert isinstance(model.fusion, GatedCrossAttention.Config)
        for dim, depth, every, billions in ((2048, 24, 1, 1.2), (4096, 32, 4, 1.6), (8192, 80, 7, 9.7)):
            blocks = replace(model.fusion, every=every, heads=dim // 128).build(dim=dim, depth=depth)
            assert round(_count(blocks) / 1e9, 1) == billions


def test_the_last_picture_alone_is_looked_at_in_all_four() -> None:
    for name in NAMES:
        fusion = tiny(name).model.fusion
        assert isinstance(fusion, GatedCrossAttention.Config)
        seen = looked(replace(fusion, features=0), batch("a*b*c"))
        assert drawn(seen[0]) == ["", "0", "0", "1", "1"], name


def test_a_picture_takes_one_column_and_64_features_in_all_four() -> None:
    for name in NAMES:
        model = load_recipe(name)[1].model
        size = model.spec("image").size
        assert (model.columns("image", size), model.layout("image", size).count) == (1, 64)


def test_openflamingos_blocks_stand_before_every_fourth_block_the_fourth_first() -> None:
    """And IDEFICS's before the first; both have eight. Nothing projects the features."""
    open_flamingo, idefics = full("open_flamingo"), full("idefics")
    for model, first, width in ((open_flamingo, 3, 1024), (idefics, 0, 1280)):
        assert len(model.fusion.blocks) == 8
        assert model.fusion.config.first == first
        assert model.fusion.blocks[0].attn.k_proj.in_features == width
        assert isinstance(model.connectors["image"].leave, nn.Identity)


def test_idefics_norms_queries_and_keys_so_their_size_does_not_matter() -> None:
    """Ten times the projections change nothing but by the norms' epsilon; Flamingo's attention they do change."""

    def moved(name: str, of: Callable[[MLLM], nn.Module]) -> float:
        model = opened(built(tiny(name).model))
        assert isinstance(model, MLLM)
        made = batch("a*b", sizes=((32, 32),))
        with model.inference():
            before = model(made).hidden
            for module in of(model).modules():
                if hasattr(module, "q_proj"):
                    module.q_proj.weight.mul_(10.0)
                    module.k_proj.weight.mul_(10.0)
            return float((model(made).hidden - before).abs().max())

    for part in (lambda m: m.fusion, lambda m: m.connectors):
        assert moved("idefics", part) < 1e-2 * moved("flamingo", part)


def test_idefics_learns_the_rows_of_its_tokens_beside_a_frozen_vocabulary() -> None:
    recipe = tiny("idefics")
    model = recipe.build()
    set_trainable(model, recipe.stages[0].train)
    assert model.tokens is not None
    assert model.tokens.rows.shape == (2, 32)
    assert model.tokens.rows.requires_grad
    assert not any(p.requires_grad for p in model.llm.parameters())


def test_multimodal_gpt_adapts_the_gated_blocks_as_well() -> None:
    recipe = tiny("multimodal_gpt")
    model = recipe.build()
    set_trainable(model, recipe.stages[-1].train)
    adapted = {name.rpartition(".lora_")[0] for name, _ in lora.lora_parameters(model)}
    block = "fusion.blocks.0."
    wanted = {f"attn.{p}_proj" for p in "qkvo"} | {"mlp.up_proj", "mlp.down_proj"}
    assert {name.removeprefix(block) for name in adapted if name.startswith(block)} == wanted
    assert {name.removeprefix("llm.blocks.0.") for name in adapted if name.startswith("llm.blocks.0.")} == {
        f"attn.{p}_proj" for p in "qkvo"
    }
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in lora.lora_parameters(model)
    }


# ---- templates ---------------------------------------------------------------------------------------------------
def spelt(template: Template, *, picture: bool = True) -> str:
    """Two turns, the first with a picture; `<image>` for its column."""
    medium = (Media("image", Ref("p")),) if picture else ()
    turns = (
        Turn("user", (*medium, Text("Q?"))),
        Turn("assistant", (Text("A"),)),
        Turn("user", (Text("Q2?"),)),
        Turn("assistant", (Text("A2"),)),
    )
    tokenizer = byte_tokenizer(*template.added_tokens)
    tokens = template.tokens(Sample(Node(turns)), tokenizer, lambda m: ((32, 32), 1))
    text = tokenizer.decode(tokens.ids.tolist(), keep_special=True)
    return text.removeprefix("<s>").replace("<pad>", "<image>")


ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
FAKE = "<fake_token_around_image>"


@pytest.mark.parametrize(
    ("name", "stage", "text"),
    [
        ("flamingo", 0, "<image>A<EOC>A2<EOC>"),
        ("flamingo", 1, "<image>Question: Q? Answer: A<EOC>Question: Q2? Answer: A2<EOC>"),
        ("open_flamingo", 0, "<image>A<|endofchunk|>A2<|endofchunk|>"),
        (
            "open_flamingo",
            None,
            "<image>Question:Q? Short answer:A<|endofchunk|>Question:Q2? Short answer:A2<|endofchunk|>",
        ),
        (
            "multimodal_gpt",
            -1,
            ALPACA + "### Image:\n<image>\n\n### Instruction:\nQ?\n\n### Response:\nA### End."
            "\n\n### Instruction:\nQ2?\n\n### Response:\nA2### End.",
        ),
        ("idefics", 0, f"{FAKE}<image>{FAKE}A</s>A2</s>"),
        (
            "idefics",
            1,
            f"User:{FAKE}<image>{FAKE}Q?<end_of_utterance>\nAssistant: A<end_of_utterance>"
            "\nUser:Q2?<end_of_utterance>\nAssistant: A2<end_of_utterance>",
        ),
    ],
)
def test_published_spelling(name: str, stage: int | None, text: str) -> None:
    """Of a stage, or of the finished model."""
    recipe = load_recipe(name)[1]
    assert spelt(recipe.template if stage is None else recipe.stages[stage].template) == text


def test_text_alone_shares_multimodal_gpts_template_without_the_block_for_the_image() -> None:
    template = load_recipe("multimodal_gpt")[1].template
    with_picture, without = spelt(template), spelt(template, picture=False)
    assert with_picture.replace("### Image:\n<image>\n\n", "") == without
