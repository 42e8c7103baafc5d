"""BLIP-2's first stage: three masks, hard negatives, and what can be found with what it learns. About 15 s."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quintet.components.connectors.qformer import Captions, QFormer, Sight, sight
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.data.scenes import World, make_scenes
from quintet.data.tokenizer import Tokenizer
from quintet.errors import ConfigError, DataError
from quintet.evaluation.metrics.recall import DIRECTIONS
from quintet.evaluation.run import evaluate
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.lab.compare.runs import Asked
from quintet.lab.pretrained import build_model, load_tokenizer, stage_tokenizer
from quintet.lab.run import Job, load_recipe, train
from quintet.model.checkpoint import CAPTIONS
from quintet.model.mllm import MLLM
from quintet.recipes import blip2, llava
from quintet.recipes._scale import at_scale
from quintet.serving.engine import Engine
from quintet.serving.retrieval import Retriever
from quintet.training.loop import Interrupted, Settings
from quintet.training.objectives.align import align, hard, pairs, similarities
from quintet.training.optim import set_trainable
from quintet.values import Batch, Media, Node, Ref, Sample, Text, Turn

QUERIES, WORDS = 4, 5
EXACT = 0.0
"""A masked key has the weight exp(−∞) = 0, and nothing else changes."""


def connector(**settings: Any) -> Any:
    config = QFormer.Config(queries=QUERIES, dim=32, depth=3, heads=4, ffn=64, captions=Captions.Config().small(16))
    torch.manual_seed(0)
    made: Any = replace(config, **settings).build(d_in=24, d_out=8, vocab=50)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    return made.eval()


# ---- the masks ---------------------------------------------------------------------------------------------------
def test_the_three_masks_are_figure_2() -> None:
    there = torch.tensor([[True, True, True]])

    def drawn(kind: Sight) -> list[str]:
        return ["".join("■" if seen else "·" for seen in row) for row in sight(kind, 2, there)[0, 0].tolist()]

    assert drawn("apart") == ["■■···", "■■···", "··■■■", "··■■■", "··■■■"]
    assert drawn("together") == ["■■■■■"] * 5
    assert drawn("causal") == ["■■···", "■■···", "■■■··", "■■■■·", "■■■■■"]


def test_padding_is_seen_by_nobody() -> None:
    there = torch.tensor([[True, True, False]])
    for kind in ("apart", "together", "causal"):
        assert not sight(kind, 2, there)[0, 0, :, 4].any()


REACH = {
    # What moves when (the picture, the third word of five) is another: queries, words 0 to 4.
    "apart": ("Q·····", "·01234"),
    "together": ("Q01234", "Q01234"),
    "causal": ("Q01234", "···234"),
}


@pytest.mark.parametrize("kind", REACH)
def test_a_mask_lets_through_exactly_what_it_should(kind: Sight) -> None:
    made = connector()
    picture, ids, there = torch.randn(1, 6, 24), torch.tensor([[1, 2, 3, 4, 5]]), torch.ones(1, 5, dtype=torch.bool)
    other = ids.clone()
    other[0, 2] = 9

    def states(picture: Tensor, ids: Tensor) -> Tensor:
        with torch.no_grad():
            asked, words = made.read(picture, ids, there, kind)
        return torch.cat([asked, words], 1)[0]

    before = states(picture, ids)
    for after, wanted in zip((states(torch.randn(1, 6, 24), ids), states(picture, other)), REACH[kind], strict=True):
        moved = (after - before).abs().amax(-1)
        queries = moved[:QUERIES]
        assert bool((queries > 1e-3).all()) if "Q" in wanted else float(queries.max()) == EXACT
        for n, change in enumerate(moved[QUERIES:].tolist()):
            assert change > 1e-3 if str(n) in wanted else change == EXACT, f"word {n}"


def test_apart_is_what_queries_and_words_are_without_each_other() -> None:
    """Retrieval reads a gallery once, training reads pairs in one pass; rounding alone may differ."""
    made = connector()
    pictures, ids = torch.randn(3, 6, 24), torch.randint(0, 50, (3, WORDS))
    there = torch.ones(3, WORDS, dtype=torch.bool)
    there[1, 3:] = False
    with torch.no_grad():
        seen, said = made.compared(*made.read(pictures, ids, there, "apart"))
        torch.testing.assert_close(made.pictures(pictures), seen, atol=1e-5, rtol=0)
        torch.testing.assert_close(made.sentences(ids, there), said, atol=1e-5, rtol=0)


def test_words_share_the_queries_self_attention_and_have_a_feed_forward_of_their_own() -> None:
    made = connector()
    ids, there = torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool)
    made.sentences(ids, there).sum().backward()
    shared = {n for n, p in made.qformer.named_parameters() if p.grad is not None}
    assert all(".attention." in name or name.startswith("norm.") for name in shared)
    assert {f"layers.{i}.attention.q_proj.weight" for i in range(3)} <= shared
    assert all(p.grad is not None for p in made.captions.ffn.parameters())


def test_dec_takes_the_place_of_the_first_token_when_a_caption_is_written() -> None:
    made = connector()
    picture, there = torch.randn(1, 6, 24), torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        one, other = (made.write(picture, torch.tensor([[first, 5, 6, 7]]), there) for first in (1, 2))
        assert torch.equal(one, other)
        made.captions.words.weight[made.captions.dec] *= -1.0
        assert not torch.allclose(made.write(picture, torch.tensor([[1, 5, 6, 7]]), there), one, atol=1e-3)
    assert one.shape == (1, 4, 51)


def test_a_caption_that_is_too_long_is_refused_and_so_is_a_connector_without_words() -> None:
    with pytest.raises(ConfigError, match="a caption of 5 tokens; the Q-Former reads at most 4"):
        connector(positions=4).captions.embed(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ConfigError, match="reads no captions"):
        connector(captions=None).pictures(torch.randn(1, 6, 24))


# ---- pairs -------------------------------------------------------------------------------------------------------
class Small:
    """A tiny BLIP-2 that spells and reads captions."""

    def __init__(self) -> None:
        self.recipe = at_scale(blip2.recipe(), "tiny")
        self.tokenizer = load_tokenizer(self.recipe.model)
        self.model = build_model(self.recipe.model, vocab=self.tokenizer.vocab).eval()
        self.processor = Processor(self.tokenizer, self.recipe.stages[0].template, self.recipe.model)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)

    def batch(self, *rows: list[Sample]) -> Batch:
        spelt = [[self.processor.tokens(s) for s in row] for row in rows]
        items = [item for row in spelt for tokens in row for item in tokens.items]
        media = {n: Loaded(load_image(item.ref, self.processor.spec(item.kind))) for n, item in enumerate(items)}
        return collate(spelt, media, pad=self.tokenizer.pad_id)

    def said(self, ids: Tensor, there: Tensor) -> list[str]:
        decode = self.tokenizer.decode
        return [decode(i[t].tolist(), keep_special=True) for i, t in zip(ids, there, strict=True)]


@pytest.fixture(scope="module")
def small() -> Small:
    return Small()


def shown(number: int) -> Media:
    import io

    from conftest import picture

    file = io.BytesIO()
    picture(number, height=32, width=32).save(file, "PNG")
    return Media("image", Ref(f"{number}.png", data=file.getvalue()))


def says(text: str) -> Turn:
    return Turn("assistant", (Text(text),))


def pair(number: int, caption: str) -> Sample:
    return Sample(Node((Turn("user", (shown(number), Text("Describe it."))), says(caption))))


def test_a_pair_is_a_caption_and_the_picture_before_it(small: Small) -> None:
    """Packed, padded, as branches of one picture; without a picture a text is no caption."""
    branches = tuple(Node((says(text),)) for text in ("A star.", "One star, white."))
    tree = Sample(Node((Turn("user", (shown(7),)),), branches))
    alone = Sample(Node((Turn("user", (Text("How many?"),)), says("Four."))))
    two = Turn("user", (shown(4), shown(5)))
    batch = small.batch([pair(1, "A circle."), tree], [alone, Sample(Node((two, says("A cross.")))), pair(3, "No.")])
    found = pairs(batch)
    assert small.said(found.ids, found.there) == [
        f"<s>{text}</s>" for text in ("A circle.", "A star.", "One star, white.", "A cross.", "No.")
    ]
    assert found.items.tolist() == [0, 1, 1, 3, 4]
    assert torch.equal(found.weights > 0, found.there[:, 1:])


def test_a_caption_alone_is_spelt_as_in_a_pair(small: Small) -> None:
    found = pairs(small.batch([pair(1, "A small red circle.")]))
    retriever = Retriever(small.model, small.processor)
    assert torch.equal(retriever._ids(["A small red circle."])[0], found.ids)


def test_hard_negatives_are_never_the_positive_nor_what_is_the_same() -> None:
    """Drawn where the similarity of what must not be drawn is largest; without the mask they would be drawn."""
    near = torch.full((4, 4), -20.0)
    near.fill_diagonal_(5.0)
    near[1, 2] = near[2, 1] = 5.0
    near[0, 3] = 4.0
    same = torch.eye(4, dtype=torch.bool)
    same[1, 2] = same[2, 1] = True
    torch.manual_seed(0)
    hardest = 0
    for _ in range(200):
        drawn, there = hard(near, same)
        assert bool(there.all())
        assert not bool(same[torch.arange(4), drawn].any())
        hardest += int(drawn[0] == 3)
    assert hardest >= 195, "the most similar is drawn: its chance is 0.999"
    loose = torch.stack([hard(near, torch.zeros_like(same))[0] for _ in range(50)])
    assert bool((loose == torch.arange(4)).any()), "the mask is what keeps the positive out"
    assert hard(near, torch.ones_like(same))[1].tolist() == [False] * 4


class Watched(nn.Module):
    """A connector that notes what it is asked to match."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.matched = inner, []

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def match(self, pictures: Tensor, ids: Tensor, there: Tensor) -> Tensor:
        self.matched.append((pictures, ids))
        return self.inner.match(pictures, ids, there)


def test_itm_asks_once_for_each_pair_and_twice_for_what_is_none(small: Small) -> None:
    """Pictures 1 and 2 have one caption, picture 3 stands twice with captions of its own: none of these is asked."""
    rows = [pair(1, "A circle."), pair(2, "A circle."), pair(3, "A star."), pair(3, "One star."), pair(5, "No.")]
    batch = small.batch(rows)
    found = pairs(batch)
    model: Any = small.model
    kept = model.connectors["image"]
    watched = Watched(kept)
    try:
        model.connectors["image"] = watched
        encoded = torch.stack(model.encode("image", batch).split())[found.items]
        for seed in range(20):
            torch.manual_seed(seed)
            align(model, batch)
    finally:
        model.connectors["image"] = kept
    groups = [{0, 1}, {0, 1}, {2, 3}, {2, 3}, {4}]
    drawn = set()
    for pictures, ids in watched.matched:
        assert len(pictures) == 15
        seen = [[n for n in range(5) if torch.equal(p, encoded[n])] for p in pictures]
        read = [[n for n in range(5) if torch.equal(i, found.ids[n])] for i in ids]
        for n, (p, i) in enumerate(zip(seen, read, strict=True)):
            if n < 5:
                assert n in p
                assert n in i
            else:
                assert not any(a in groups[b] for a in p for b in i), "a right pair was asked as a wrong one"
                drawn.add((p[0], i[0]))
    assert len(drawn) > 6, "negatives are drawn, not fixed"


def test_a_similarity_is_that_of_the_nearest_query() -> None:
    pictures = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    captions = torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
    assert similarities(pictures, captions).tolist() == [[pytest.approx(0.8), 0.0]]


def losses(small: Small, batch: Batch, **times: float) -> dict[str, float]:
    torch.manual_seed(0)
    loss, count, notes = align(small.model, batch, times)
    return {name: float(value) / count for name, value in notes.items()} | {"all": float(loss.detach()) / count}


def test_the_three_losses_add_up_and_each_can_be_left_out(small: Small) -> None:
    batch = small.batch([pair(n, f"Number {n}.") for n in range(4)])
    whole = losses(small, batch)
    assert whole["all"] == pytest.approx(whole["itc"] + whole["itm"] + whole["itg"], rel=1e-5)
    assert losses(small, batch, itm=0.0)["all"] == pytest.approx(whole["itc"] + whole["itg"], rel=1e-5)
    with pytest.raises(ConfigError, match="no loss 'itx'; it has itc, itm, itg"):
        align(small.model, batch, {"itx": 1.0})


def test_itc_is_the_hand_made_cross_entropy(small: Small) -> None:
    """Two pairs, label smoothing 0.1, temperature 0.07, both directions."""
    batch = small.batch([pair(1, "A circle."), pair(2, "A star.")])
    found = pairs(batch)
    made: Any = small.model.connectors["image"]
    with torch.no_grad():
        pictures = torch.stack(small.model.encode("image", batch).split())
        near = similarities(made.pictures(pictures), made.sentences(found.ids, found.there)) / 0.07
        labels = torch.arange(2)
        wanted = sum(nn.functional.cross_entropy(x, labels, label_smoothing=0.1) for x in (near, near.T)) / 2
    assert losses(small, batch)["itc"] == pytest.approx(float(wanted), rel=1e-4)


def test_without_a_picture_there_is_nothing_to_align(small: Small) -> None:
    alone = Sample(Node((Turn("user", (Text("How many?"),)), says("Four."))))
    loss, count, notes = align(small.model, small.batch([alone]))
    assert (float(loss), loss.requires_grad) == (0.0, False)
    assert set(map(float, notes.values())) == {0.0}
    assert count > 0


def test_one_pair_has_no_negatives_and_learns_all_the_same(small: Small) -> None:
    found = losses(small, small.batch([pair(1, "A circle.")]))
    assert found["itc"] == pytest.approx(0.0, abs=1e-6)
    assert found["itm"] > 0
    assert found["itg"] > 0


def test_a_model_that_reads_no_captions_cannot_align(small: Small) -> None:
    recipe = at_scale(llava.recipe(), "tiny")
    model = build_model(recipe.model, vocab=small.tokenizer.vocab)
    with pytest.raises(ConfigError, match="no connector of this model reads captions"):
        align(model, small.batch([pair(1, "A circle.")]))


def test_it_learns_which_caption_is_of_which_picture() -> None:
    """Eight pairs by heart: ITC finds each, ITM tells all from the hardest others, ITG writes them."""
    small = Small()
    batch = small.batch([pair(n, f"Number {n} of them.") for n in range(8)])
    set_trainable(small.model, small.recipe.stages[0].train)
    optimizer = torch.optim.AdamW([p for p in small.model.parameters() if p.requires_grad], lr=3e-3)
    first = losses(small, batch)
    for step in range(140):
        torch.manual_seed(step)
        loss, count, _ = align(small.model, batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    last = losses(small, batch)
    # Measured: 3.50 to 0.49 (smoothed targets leave 0.47), 1.18 to 0.01, 9.24 to 0.04.
    assert first["itc"] > 3
    assert last["itc"] < 0.6
    assert last["itm"] < 0.2
    assert last["itg"] < 0.2
    made: Any = small.model.connectors["image"]
    found = pairs(batch)
    with torch.no_grad():
        pictures = torch.stack(small.model.encode("image", batch).split())
        near = similarities(made.pictures(pictures), made.sentences(found.ids, found.there))
    assert near.argmax(1).tolist() == near.argmax(0).tolist() == list(range(8))


# ---- words -------------------------------------------------------------------------------------------------------
def test_at_full_scale_captions_are_berts_words(tmp_path: Path) -> None:
    """Its 30,522 and [DEC]; a folder of a small BERT tokenizer stands for the published one."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = blip2.recipe().model
    with torch.device("meta"):
        made: Any = model.connectors["image"].build(d_in=8, d_out=8, vocab=50_272)  # type: ignore[call-arg]
    assert made.captions.words.weight.shape == (30_523, 768)
    vocabulary = {w: n for n, w in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "circle"))}
    backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(tmp_path)
    captions = Captions.Config(source=str(tmp_path), vocab=6, dim=16)
    queries = replace(at_scale(blip2.recipe(), "tiny").model.connectors["image"], captions=captions)  # type: ignore[type-var]
    config = replace(at_scale(blip2.recipe(), "tiny").model, connectors={"image": queries})
    llm = load_tokenizer(config)
    align_stage, generative = blip2.recipe().stages
    assert stage_tokenizer(config, generative, llm) is llm
    spelt = Processor(stage_tokenizer(config, align_stage, llm), align_stage.template, config)
    assert spelt.tokens(pair(1, "a circle")).ids[-4:].tolist() == [2, 4, 5, 3]


def test_bert_without_an_end_token_is_read_and_gpt_without_any_is_not(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(Exception, match="no end token"):
        Tokenizer.load(tmp_path)


# ---- a run -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("align") / "scenes"
    make_scenes(out, 24, 0, World())
    return out


@pytest.fixture(scope="module")
def run(scenes: Path) -> Path:
    out = scenes.parent / "run"
    train(Job(recipe="blip2", scale="tiny", out=out, scenes=scenes))
    return out


def test_the_first_stage_resumes_to_the_bit(scenes: Path, run: Path, tmp_path: Path) -> None:
    """Its negatives are drawn by the step's own random numbers."""
    job = Job(recipe="blip2", scale="tiny", out=tmp_path / "run", scenes=scenes)
    with pytest.raises(Interrupted):
        train(replace(job, settings=Settings(stop_after=1)))
    train(replace(job, resume=True))
    for name in ("connectors.image.qformer", "connectors.image.captions"):
        there, here = (folder / "model" / f"{name}.safetensors" for folder in (run, tmp_path / "run"))
        assert here.read_bytes() == there.read_bytes()


def test_a_run_finds_captions_and_pictures(scenes: Path, run: Path) -> None:
    engine = Engine.open(run)
    task = scenes_task("scenes.retrieval", scenes, split="train")
    result = evaluate(engine.answers(task), task, limit=16, out=run)
    assert set(result.kinds) == set(DIRECTIONS)
    assert result.controls["shuffled"] is not None
    assert {f"{d} R@{k}" for d in DIRECTIONS for k in (1, 5, 10)} == set(result.measures)
    assert result.n == 16
    assert (run / "eval" / "scenes.retrieval.json").is_file()
    assert (run / "model" / CAPTIONS / "processor.json").is_file()


def test_a_model_without_such_heads_is_not_asked(scenes: Path, run: Path) -> None:
    task = scenes_task("scenes.retrieval", scenes, split="train")
    asked = Asked(task, {item.id: item for item in task.items()}, 4)
    assert asked.fits(at_scale(blip2.recipe(), "tiny"))
    assert not asked.fits(at_scale(llava.recipe(), "tiny"))
    engine = Engine.open(run)
    engine.captions = None
    assert not engine.fits(task)
    with pytest.raises(ConfigError, match=r"scenes\.retrieval asks which caption fits a picture"):
        engine.answers(task)
    assert engine.fits(scenes_task("scenes.vqa", scenes))


# ---- finding -----------------------------------------------------------------------------------------------------
def test_a_retriever_ranks_by_both_heads(small: Small) -> None:
    """ITM orders what ITC finds near: with its yes turned round the order turns round too."""
    made: Any = small.model.connectors["image"]
    samples = [Sample(Node((Turn("user", (shown(n), Text(f"Number {n}."))),))) for n in range(5)]
    samples += [Sample(Node((Turn("user", (Text(f"Number {n}."), shown(n))),))) for n in range(5)]
    samples = [replace(s, origin=replace(s.origin, id=f"place-{i % 5}")) for i, s in enumerate(samples)]
    found = Retriever(small.model, small.processor).rank(samples)
    assert all(sorted(ranked.split("\n")) == [f"Number {n}." for n in range(5)] for ranked in found[:5])
    assert all(sorted(ranked.split("\n")) == [f"place-{n}" for n in range(5)] for ranked in found[5:])
    by_itc = Retriever(small.model, small.processor, judged=0).rank(samples)
    with torch.no_grad():
        made.captions.itm.weight.mul_(100.0)
        one = Retriever(small.model, small.processor).rank(samples)
        made.captions.itm.weight.mul_(-1.0)
        other = Retriever(small.model, small.processor).rank(samples)
        made.captions.itm.weight.mul_(-0.01)
    assert one != by_itc
    assert [ranked.split("\n") for ranked in other] == [ranked.split("\n")[::-1] for ranked in one]
    assert Retriever(small.model, small.processor, judged=0).rank(samples[::-1])[::-1] == by_itc


def test_a_sample_that_is_no_pair_is_refused(small: Small) -> None:
    with pytest.raises(DataError, match="an image and a caption, the query first"):
        Retriever(small.model, small.processor).rank([pair(1, "A circle.")])


def test_full_scale_recipes_have_the_parameters_of_both_stages() -> None:
    """188 M in the paper's table 1, 186.7 M here; what captions add is BERT-base's words and layers, and the heads."""
    recipe = load_recipe("blip2")[1]
    assert recipe.paper.trainable["align"] == 188_000_000
    with torch.device("meta"):
        parts = MLLM.Config.build(recipe.model).parts()
    captions = sum(p.numel() for p in parts["connectors.image.captions"].parameters())
    words, places, ffn = 30_523 * 768, 512 * 768, 12 * (2 * 768 * 3072 + 3072 + 768 + 2 * 768)
    heads = 2 * (768 * 256 + 256) + 768 * 2 + 2 + 768 * 768 + 768 + 2 * 768 + 30_523 + 1
    assert captions == words + places + ffn + heads
