"""Documents with pictures among their words: how they are spelt, who sees which picture, and those of Scenes."""

import hashlib
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from conftest import byte_tokenizer, picture
from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.data.check import check
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.data.scenes import make_scenes, read_truth
from quintet.data.scenes.pages import NAMES
from quintet.data.sources import Pages, open_source
from quintet.data.template import Template
from quintet.errors import ConfigError, DataError, TrainingError
from quintet.lab.doctor.spelling import answers, length
from quintet.lab.recipe import load_recipe, recipe_names
from quintet.lab.run import Job, scenes_rows, stage_source, train
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.training.stage import Data
from quintet.values import Batch, Features, Layout, Media, Node, Part, Ref, Sample, Text, Tokens, Turn
from systems import enlarge, tiny

READERS = sorted(n for n in recipe_names() if any(s.data.kind == "interleaved" for s in load_recipe(n)[1].stages))


# ---- how documents are spelt -------------------------------------------------------------------------------------
def document(*parts: str) -> Sample:
    """`*` is a picture."""
    made: list[Part] = [Media("image", Ref("p")) if part == "*" else Text(part) for part in parts]
    return Sample(Node((Turn("document", tuple(made)),)))


def spelt(template: Template, page: Sample) -> tuple[str, str]:
    """The text, `^` for a picture; and below it what is learnt, with dots where nothing is."""
    tokens = template.tokens(page, tokenizer := byte_tokenizer(*template.added_tokens), lambda m: ((8, 8), 1))
    ids = tokens.ids.tolist()
    text = [tokenizer.decode([i], keep_special=True).replace("<pad>", "^") for i in ids]
    kept = [t if w else "·" * len(t) for t, w in zip(text, tokens.weight.tolist(), strict=True)]
    assert not list(answers(page, tokens, Processor(tokenizer, template, _model())))
    assert not list(length(page, tokens, Processor(tokenizer, template, _model())))
    return "".join(text).removeprefix("<s>"), "".join(kept).removeprefix("···")


def _model() -> MLLM.Config:
    return at_scale(load_recipe("vila")[1], "tiny").model


FAKE = "<fake_token_around_image>"


@pytest.mark.parametrize(
    ("name", "text", "learnt"),
    [
        ("flamingo", "A.<EOC>^B.<EOC>^C.<EOC>", "A.<EOC>·B.<EOC>·C.<EOC>"),
        (
            "open_flamingo",
            "A.^B.<|endofchunk|>^C.<|endofchunk|>",
            "···B.<|endofchunk|>·C.<|endofchunk|>",
        ),
        ("vila", "A.^B.^C.</s>", "A.·B.·C.</s>"),
        ("mm1", "A.^B.^C.</s>", "A.·B.·C.</s>"),
        ("kosmos1", "A.<image>^</image>B.<image>^</image>C.</s>", "A.················B.················C.</s>"),
        ("idefics", f"A.{FAKE}^{FAKE}B.{FAKE}^{FAKE}C.</s>", f"A.{'·' * 51}B.{'·' * 51}C.</s>"),
    ],
)
def test_a_document_is_spelt_as_published_and_its_words_are_learnt(name: str, text: str, learnt: str) -> None:
    stage = next(s for s in load_recipe(name)[1].stages if s.data.kind == "interleaved")
    assert spelt(stage.template, document("A.", "*", "B.", "*", "C.")) == (text, learnt)


def test_no_chunk_ends_where_none_began() -> None:
    template = load_recipe("flamingo")[1].stages[0].template
    assert spelt(template, document("*", "*", "B.", "*"))[0] == "^^B.<EOC>^<EOC>"


def test_open_flamingo_learns_nothing_of_a_page_before_its_first_picture() -> None:
    template = load_recipe("open_flamingo")[1].stages[1].template
    assert spelt(template, document("A.", "B.", "*", "C."))[1] == "·····C.<|endofchunk|>"
    with pytest.raises(DataError, match="no token of this sample is learnt"):
        spelt(template, document("A."))


def test_the_doctor_sees_when_the_end_of_a_chunk_is_not_learnt() -> None:
    template = load_recipe("flamingo")[1].stages[0].template
    page, tokenizer = document("*", "B.", "*", "C."), byte_tokenizer(*template.added_tokens)
    tokens = template.tokens(page, tokenizer, lambda m: ((8, 8), 1))
    end = (tokens.ids == tokenizer.specials["<EOC>"]).nonzero()[0]
    broken = replace(tokens, weight=tokens.weight.index_fill(0, end, 0.0))
    assert list(answers(page, broken, Processor(tokenizer, template, _model())))


# ---- who sees which picture --------------------------------------------------------------------------------------
def loaded(name: str) -> tuple[Recipe, MLLM, Processor]:
    """A tiny model with its gates open, and the template of its stage on documents."""
    recipe, model, processor = tiny(name)
    enlarge(model)
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            if not parameter.any():
                parameter.fill_(0.5)
    stage = next(s for s in recipe.stages if s.data.kind == "interleaved")
    return recipe, model, replace(processor, template=stage.template)


def page(folder: Path, *numbers: int) -> Sample:
    """Pictures of these numbers among words."""
    parts: list[Part] = [Text("A page.")]
    for number in numbers:
        path = folder / f"{number}.png"
        picture(number, height=32, width=32).save(path)
        parts += [Media("image", Ref(path.name, path=path)), Text("It is red. And large.")]
    return Sample(Node((Turn("document", tuple(parts)),)))


def batch(processor: Processor, *rows: list[Tokens]) -> Batch:
    items = [item for row in rows for tokens in row for item in tokens.items]
    media = {n: Loaded(load_image(item.ref, processor.spec(item.kind))) for n, item in enumerate(items)}
    return collate(rows, media, pad=processor.tokenizer.pad_id)


@pytest.mark.parametrize("name", READERS)
def test_in_a_document_a_picture_matters_from_its_place_on_and_packing_changes_nothing(
    name: str, tmp_path: Path
) -> None:
    _, model, processor = loaded(name)

    def logits(made: Batch) -> torch.Tensor:
        with model.inference():
            return model.logits(model(made).hidden)[0]

    one, other, short = (processor.tokens(page(tmp_path, *n)) for n in ((1, 2, 3), (1, 7, 3), (4,)))
    alone, changed = logits(batch(processor, [one])), logits(batch(processor, [other]))
    moved = (alone - changed).abs().amax(-1)
    start = one.items[1].start
    assert moved[:start].max() == 0
    assert moved[one.items[1].start + one.items[1].columns :].max() > 1e-3
    packed = logits(batch(processor, [short, one]))
    torch.testing.assert_close(packed[len(short) :], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", [n for n in READERS if "flamingo" in n or n in ("idefics", "multimodal_gpt")])
def test_a_column_of_a_document_looks_at_the_last_picture_before_it_alone(name: str, tmp_path: Path) -> None:
    """By the mask of the gated blocks, for two documents packed in one row."""
    _, model, processor = loaded(name)
    assert isinstance(model.fusion, GatedCrossAttention)
    made = [processor.tokens(page(tmp_path, *numbers)) for numbers in ((1, 2, 3), (4, 5))]
    row = batch(processor, made)
    layouts = tuple(Layout((2,)) for _ in range(5))
    width = model.fusion.config.d_features(len(model.fusion.marker))
    features = {"image": Features(torch.randn(10, width), layouts)}
    view = model.fusion.view(model.fusion.memory(features, row), row)
    seen = (view.mask[0, 0] & view.sees[0]).unflatten(-1, (5, 2)).all(-1)
    looked = [column.nonzero().flatten().tolist() for column in seen]
    expected: list[list[int]] = []
    for first, tokens in zip((0, 3), made, strict=True):
        counts = [sum(item.start <= column for item in tokens.items) for column in range(len(tokens))]
        expected += [[first + count - 1] if count else [] for count in counts]
    assert looked == expected
    assert {tuple(each) for each in looked} == {(), (0,), (1,), (2,), (3,), (4,)}


# ---- the documents of Scenes -------------------------------------------------------------------------------------
BEFORE = {
    "test.json": "fabdf9015e3c71c1",
    "test.truth.jsonl": "98d0305eb49d8b8d",
    "test_captions.json": "399cda9f21ce6e12",
    "test_regions.json": "873bd7867a8f1004",
    "train.json": "39891a5444bf78fd",
    "train.truth.jsonl": "ef3ca0d9aa9e569e",
    "train_captions.json": "eec146bb73f8e06d",
    "train_regions.json": "efb573084b93b647",
    "val.json": "3654f365a645c654",
    "val.truth.jsonl": "0724f481519c55b7",
    "val_captions.json": "f74309cab400e5b5",
    "val_regions.json": "1b61b79e358d5b67",
}
"""Fingerprints of layout 2. Results of trained models depend on these files."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("pages") / "scenes", 30, 7, splits={"val": 4, "test": 12})


@pytest.mark.parametrize("name", BEFORE)
def test_what_scenes_held_before_it_had_documents_is_as_it_was(scenes: Path, name: str) -> None:
    """Names of pictures are hashes of pixels, which another Pillow may draw otherwise: they are numbered here."""
    numbers: dict[str, int] = {}
    text = re.sub(
        r"\b[0-9a-f]{12}\b", lambda m: f"p{numbers.setdefault(m[0], len(numbers))}", (scenes / name).read_text()
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == BEFORE[name]


def test_documents_of_scenes_are_read_without_a_fault_and_every_picture_has_its_caption(scenes: Path) -> None:
    source = open_source(scenes / "train_interleaved.jsonl", pages=Pages(missing="refuse", similarity=0.24))
    assert not check(scenes / "train_interleaved.jsonl").faults
    captions = {r["image"]: r["conversations"][1]["value"]
                for r in json.loads((scenes / "train_captions.json").read_text())}  # fmt: skip
    albums, pictures = Counter[str](), Counter[int]()
    for row in range(len(source)):
        parts = source.sample(row).root.turns[0].parts
        pictures[sum(isinstance(part, Media) for part in parts)] += 1
        for part, after in pairwise(parts):
            if isinstance(part, Media) and isinstance(after, Text) and after.text == captions[part.ref.name]:
                albums[part.ref.name] += 1
    assert albums == dict.fromkeys(captions, 1)
    assert pictures.keys() >= {1, 2, 3, 4}


def test_a_made_up_name_means_one_thing_on_its_page_and_comes_again(tmp_path: Path) -> None:
    scenes = make_scenes(tmp_path / "scenes", 150, 3, splits={"val": 0, "test": 0})
    truths = {f"images/train/{t.image.name}": t.scene for t in read_truth(scenes / "train.truth.jsonl")}
    pages = 0
    for line in (scenes / "train_interleaved.jsonl").read_text().splitlines():
        row = json.loads(line)
        said = [words for words in row["text_list"] if " called? " in words]
        if not said:
            continue
        pages += 1
        attribute = "shape" if "shape" in said[0] else "colour"
        meant: dict[str, list[str]] = {}
        for info, words in zip(row["image_info"], said, strict=True):
            [thing] = truths[info["image_name"]].objects
            meant.setdefault(next(name for name in NAMES if words.endswith(name)), []).append(getattr(thing, attribute))
        assert len(meant) == 2
        assert all(len(values) > 1 and len(set(values)) == 1 for values in meant.values())
        assert meant[min(meant)][0] != meant[max(meant)][0]
    assert pages > 5


# ---- training ----------------------------------------------------------------------------------------------------
def test_the_papers_that_pre_train_on_documents_have_a_stage_on_them() -> None:
    assert set(READERS) >= {
        "flamingo", "idefics", "kosmos1", "mm1", "multimodal_gpt", "open_flamingo", "vila",
    }  # fmt: skip
    [stage] = [s for s in load_recipe("open_flamingo")[1].stages if s.data.kind == "interleaved"]
    assert stage.data.pages == Pages(similarity=0.24, pictures=6)


@pytest.mark.parametrize("name", ["flamingo", "vila"])
def test_a_stage_learns_from_the_documents_of_scenes(name: str, scenes: Path, tmp_path: Path) -> None:
    stage = next(s for s in load_recipe(name)[1].stages if s.data.kind == "interleaved")
    assert scenes_rows(scenes, stage.data.kind).name == "train_interleaved.jsonl"
    results = train(Job(recipe=name, out=tmp_path / "run", scale="tiny", scenes=scenes, stages=[stage.name]))
    assert (results[stage.name].steps, results[stage.name].dropped) == (2, {})


@pytest.mark.parametrize(
    ("name", "share"),
    [("vila", 0.6), ("idefics", 0.29), ("mplug_owl", 0.62), ("lavin", 0.25), ("multimodal_gpt", 0.5), ("kosmos1", 0.27),
     ("llama_adapter_v2", 1.0), ("llava15", 0.0)],
)  # fmt: skip
def test_text_without_pictures_is_in_the_batches_of_the_papers_that_say_so(
    name: str, share: float, scenes: Path, tmp_path: Path
) -> None:
    """Shares: systems.yaml's rows; LLaMA-Adapter V2's instructions are text alone."""
    recipe = at_scale(load_recipe(name)[1], "tiny")
    source = stage_source(Job(recipe=name, out=tmp_path, scale="tiny", scenes=scenes), recipe, recipe.stages[-1])
    samples = [source.sample(i) for i in range(len(source))]
    plain = [sample for sample in samples if not sample.media()]
    assert len(plain) == pytest.approx(share * len(source), abs=1)


def test_rows_of_another_kind_are_in_the_batches_in_their_share(scenes: Path, tmp_path: Path) -> None:
    recipe = at_scale(load_recipe("qwen_vl")[1], "tiny")
    source = stage_source(Job(recipe="qwen_vl", out=tmp_path, scale="tiny", scenes=scenes), recipe, recipe.stages[1])
    files = Counter(Path(source.sample(i).origin.file).name for i in range(len(source)))
    pointed = len(open_source(scenes_rows(scenes, "regions")))
    assert files.total() == pointed
    shares = {"train_regions.json": 0.3, "train.json": 0.2, "train_ocr.json": 0.5}
    assert files == {name: pytest.approx(share * pointed, abs=1) for name, share in shares.items()}


@pytest.mark.parametrize(
    ("mixed", "message"),
    [
        ({"text": 0.0}, "shares of the rows are over 0"),
        ({"text": 0.6, "captions": 0.4}, "under 1 together"),
        ({"text": float("nan")}, "shares of the rows are over 0"),
        ({"txet": 0.5}, "rows of kind 'txet' cannot be mixed into regions; did you mean 'text'"),
        ({"regions": 0.5}, "rows of kind 'regions' cannot be mixed into regions"),
        ({"preferences": 0.5}, "cannot be mixed into regions"),
    ],
)
def test_shares_that_are_none_are_refused(mixed: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Data(name="some", kind="regions", mixed=mixed)


def test_what_is_told_without_a_picture_is_shown_by_the_templates_that_learn_it(scenes: Path) -> None:
    """A template of captions leaves questions out, and would teach answers to nothing."""
    stages = [stage for name in recipe_names() for stage in load_recipe(name)[1].stages]
    sample = open_source(scenes_rows(scenes, "text")).sample(0)
    [told] = [part.text.split("\n")[0] for part in sample.root.turns[0].parts if isinstance(part, Text)]
    templates = [stage.template for stage in stages if "text" in (stage.data.kind, *stage.data.mixed)]
    assert len(templates) >= 8
    for template in templates:
        tokenizer = byte_tokenizer(*template.added_tokens)
        assert told in tokenizer.decode(template.tokens(sample, tokenizer, lambda m: ((8, 8), 1)).ids.tolist())


def test_scenes_of_an_older_version_are_refused_by_the_stage_that_needs_more(scenes: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(scenes, old)
    (old / "train_text.json").unlink()
    with pytest.raises(ConfigError, match=r"has no train_text\.json: it was made by an older version"):
        train(Job(recipe="vila", out=tmp_path / "run", scale="tiny", scenes=old))
    assert not (tmp_path / "run").exists()


def _pages(folder: Path, *, there: int) -> Path:
    """Sixteen documents of one picture each; the files of the first `there` are written."""
    folder.mkdir()
    rows = []
    for n in range(16):
        info = {"image_name": f"{n}.png", "matched_text_index": 0, "matched_sim": 0.3}
        rows.append({"text_list": [f"Number {n}."], "image_info": [info]})
        if n < there:
            picture(n).save(folder / f"{n}.png")
    (folder / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pages.jsonl"


def test_pictures_that_are_missing_are_told_when_met_counted_in_the_summary_and_no_drop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two steps of eight documents are all sixteen, and four of their pictures are not there."""
    path = _pages(tmp_path / "data", there=12)
    sets = ["stages.interleaved.batch=8", "stages.interleaved.steps=2"]
    job = Job(recipe="vila", out=tmp_path / "run", scale="tiny", data={"interleaved": path}, sets=sets,
              stages=["interleaved"])  # fmt: skip
    [result] = train(job).values()
    assert (result.left_out, result.dropped) == ({"missing-file": 4}, {})
    told = [r.message for r in caplog.records if "pictures are left out of their documents" in r.message]
    assert len(told) == 1, told
    assert re.search(r"[1-4] of 8 pictures \([1-4] missing-file\)|4 of 16 pictures", told[0]), told
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["left_out"] == 4


def test_a_run_stops_when_most_pictures_are_missing(tmp_path: Path) -> None:
    path = _pages(tmp_path / "data", there=7)
    sets = ["stages.interleaved.batch=8", "stages.interleaved.steps=2"]
    job = Job(recipe="vila", out=tmp_path / "run", scale="tiny", data={"interleaved": path}, sets=sets,
              stages=["interleaved"])  # fmt: skip
    with pytest.raises(TrainingError, match=r"9 of 16 pictures \(9 missing-file\).*more than half"):
        train(job)
