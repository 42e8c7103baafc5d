"""Documents with pictures among their words: two published layouts, how they are spelt, and who sees which picture."""

import hashlib
import json
import pickle
import re
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from conftest import byte_tokenizer, picture
from quintet.cli.app import app
from quintet.components.fusion.cross_attention import GatedCrossAttention
from quintet.data.check import check
from quintet.data.collate import Loaded, collate
from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.data.scenes import make_scenes, read_truth
from quintet.data.scenes.pages import NAMES
from quintet.data.sources import Mix, Pages, Source, detect, open_source
from quintet.data.sources.pages import address_name
from quintet.data.template import Template
from quintet.errors import ConfigError, DataError
from quintet.evaluation.tasks.conversations import conversations_task
from quintet.lab.doctor.spelling import answers, length
from quintet.lab.pretrained import build_model, load_tokenizer
from quintet.lab.rows import write_rows
from quintet.lab.run import Job, load_recipe, recipe_names, scenes_rows, train
from quintet.model.mllm import MLLM
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.values import Batch, Features, Layout, Media, Node, Part, Ref, Sample, Text, Tokens, Turn

URL = "https://example.com/pictures/cat.jpg?size=2"
READERS = sorted(n for n in recipe_names() if any(s.data.kind == "interleaved" for s in load_recipe(n)[1].stages))


def saved(folder: Path, *names: str) -> Path:
    """Pictures of these names in the folder."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, height=16, width=16).save(folder / name, "PNG")
    return folder


def info(name: str, index: Any, similarity: float = 0.3, **more: Any) -> dict[str, Any]:
    return {"image_name": name, "raw_url": f"http://x/{name}", "matched_text_index": index, "matched_sim": similarity,
            "face_detections": None} | more  # fmt: skip


def mmc4(**more: Any) -> dict[str, Any]:
    """A page in MMC4's layout, with all of its published keys."""
    infos = [info("b.png", 2, 0.2), info("a.png", 0)]
    row = {"url": "http://x", "text_list": ["One.", "Two.", " Three. "], "image_info": infos}
    return row | {"similarity_matrix": [[0.1, 0.1, 0.2], [0.3, 0.1, 0.1]], "could_have_url_duplicate": 0} | more


def obelics(**more: Any) -> dict[str, Any]:
    """The same page in OBELICS' layout."""
    row = {"images": ["a.png", None, "b.png", None], "texts": [None, "One. Two.", None, "Three."]}
    return row | {"metadata": "[null]", "general_metadata": "{}"} | more


def lines(folder: Path, *rows: Any, name: str = "pages.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def shown(source: Source, row: int = 0) -> list[str]:
    """The parts of a document; a picture is its name in brackets."""
    [turn] = source.sample(row).turns()
    assert turn.role == "document"
    return [part.text if isinstance(part, Text) else f"[{part.ref.name}]" for part in turn.parts
            if isinstance(part, Text | Media)]  # fmt: skip


PAGE = ["[a.png]", "One. Two.", "[b.png]", "Three."]


# ---- layouts -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("format", "row"), [("mmc4", mmc4()), ("obelics", obelics())])
def test_a_page_is_read_alike_from_both_layouts(tmp_path: Path, format: str, row: dict[str, Any]) -> None:
    path = lines(saved(tmp_path, "a.png", "b.png"), row, row)
    (tmp_path / "list.json").write_text(json.dumps([row, row], indent=1))
    for file in (path, tmp_path / "list.json"):
        assert detect(file) == format
        source = open_source(file)
        assert len(source) == 2
        assert shown(source, 1) == PAGE
        assert source.sample(1).origin.row == 2
        assert not source.read(0).faults
        assert not source.read(0).left_out


def test_mmc4_is_read_from_the_zip_that_it_is_published_in(tmp_path: Path) -> None:
    path = lines(saved(tmp_path, "a.png", "b.png"), mmc4(), mmc4(text_list=["1", "2", "3"]))
    with zipfile.ZipFile(tmp_path / "shard_0.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(path, "shard_0.jsonl")
    source = open_source(tmp_path / "shard_0.jsonl.zip")
    assert len(source) == 2
    again = pickle.loads(pickle.dumps(source))
    assert shown(again, 1) == ["[a.png]", "1 2", "[b.png]", "3"]
    assert len(pickle.dumps(source)) < 2000, "the text itself does not travel"


def test_obelics_is_read_from_parquet_with_names_or_with_bytes(tmp_path: Path) -> None:
    saved(tmp_path, "a.png", "b.png")
    named = obelics()
    data = (tmp_path / "a.png").read_bytes()
    packed = obelics(images=[{"bytes": data, "path": "x.png"}, None, {"bytes": None, "path": "b.png"}, None])
    for row, first in ((named, "a.png"), (packed, "x.png")):
        pq.write_table(pa.Table.from_pylist([row] * 5), tmp_path / "t.parquet", row_group_size=2)
        source = pickle.loads(pickle.dumps(open_source(tmp_path / "t.parquet")))
        assert shown(source, 4) == [f"[{first}]", *PAGE[1:]]
        assert source.sample(4).media()[0].ref.read() == data


def test_pictures_lie_by_name_or_by_the_hash_of_their_address(tmp_path: Path) -> None:
    hashed = f"{address_name(URL)}.jpg"
    assert hashed.startswith(hashlib.sha256(URL.encode()).hexdigest())
    saved(tmp_path, "by/a.png", hashed)
    row = mmc4(image_info=[info("by/a.png", 0), info("gone.png", 1, raw_url=URL)])
    assert shown(open_source(lines(tmp_path, row))) == ["[by/a.png]", "One.", f"[{hashed}]", "Two. Three."]
    assert shown(open_source(lines(tmp_path, obelics(images=[URL, None, "by/a.png", None]))))[0] == f"[{hashed}]"
    elsewhere = tmp_path / "rows"
    elsewhere.mkdir()
    assert len(open_source(lines(elsewhere, row), root=tmp_path).sample(0).media()) == 2


def test_consecutive_texts_of_obelics_are_paragraphs(tmp_path: Path) -> None:
    row = {"images": [None, None], "texts": ["One.", "Two."]}
    assert shown(open_source(lines(tmp_path, row))) == ["One.\n\nTwo."]


# ---- rules -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pages", "parts", "left_out"),
    [
        (Pages(similarity=0.24), ["[a.png]", "One. Two. Three."], ("low-similarity",)),
        (Pages(similarity=0.2), PAGE, ()),
        (Pages(pictures=1), ["[a.png]", "One. Two. Three."], ("too-many",)),
        (Pages(words=2), ["[a.png]", "One. Two."], ()),
        (Pages(place="after"), ["One.", "[a.png]", "Two. Three.", "[b.png]"], ()),
        (Pages(least=2), PAGE, ()),
    ],
)
def test_what_is_taken_of_a_page(tmp_path: Path, pages: Pages, parts: list[str], left_out: tuple[str, ...]) -> None:
    source = open_source(lines(saved(tmp_path, "a.png", "b.png"), mmc4()), pages=pages)
    assert shown(source) == parts
    assert source.read(0).left_out == left_out


def test_a_picture_that_is_missing_is_left_out_or_its_page_is_refused(tmp_path: Path) -> None:
    path = lines(saved(tmp_path, "a.png"), mmc4(), obelics())
    for row in (0, 1):
        leave, refuse = (
            open_source(path, format="mmc4"),
            open_source(path, format="mmc4", pages=Pages(missing="refuse")),
        )
        assert [part for part in shown(leave, row) if part.startswith("[")] == ["[a.png]"]
        assert leave.read(row).left_out == ("missing-file",)
        with pytest.raises(DataError, match="not under") as caught:
            refuse.sample(row)
        assert (caught.value.fault, caught.value.row) == ("missing-file", row + 1)
        assert caught.value.field == ("image_info[0].image_name", "images[2]")[row]


def test_a_page_with_fewer_pictures_than_asked_for_is_refused_with_the_reason(tmp_path: Path) -> None:
    source = open_source(lines(saved(tmp_path, "a.png"), mmc4()), pages=Pages(least=2, similarity=0.24))
    with pytest.raises(DataError, match=r"1 pictures are left, 2 are asked for.*low-similarity"):
        source.sample(0)


@pytest.mark.parametrize("wrong", [{"pictures": 0}, {"least": -1}, {"least": 3, "pictures": 2}, {"words": 0}])
def test_rules_that_nothing_can_keep_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Pages(**wrong)


# ---- faults ------------------------------------------------------------------------------------------------------
FAULTS: dict[str, tuple[Any, str, str | None]] = {
    "no object": (3, "wrong-type", None),
    "neither layout": ({"a": 1}, "missing-key", None),
    "both layouts": (mmc4() | obelics(), "missing-key", None),
    "no sentences": (mmc4(text_list=None), "missing-key", "text_list"),
    "sentences that are no list": (mmc4(text_list="One."), "wrong-type", "text_list"),
    "a sentence that is no text": (mmc4(text_list=["One.", 2, "Three."]), "wrong-type", "text_list[1]"),
    "half a character": (mmc4(text_list=["One.", "\ud83d", "3"]), "not-unicode", "text_list[1]"),
    "no words": (mmc4(text_list=["", " ", ""]), "empty-text", None),
    "pictures that are no list": (mmc4(image_info={}), "wrong-type", "image_info"),
    "a picture that is no object": (mmc4(image_info=["a.png"]), "wrong-type", "image_info[0]"),
    "no index": (mmc4(image_info=[info("a.png", None)]), "missing-key", "image_info[0].matched_text_index"),
    "an index that is text": (mmc4(image_info=[info("a.png", "0")]), "wrong-type", "image_info[0].matched_text_index"),
    "an index out of range": (mmc4(image_info=[info("a.png", 3)]), "bad-index", "image_info[0].matched_text_index"),
    "a negative index": (mmc4(image_info=[info("a.png", -1)]), "bad-index", "image_info[0].matched_text_index"),
    "a similarity that is text": (
        mmc4(image_info=[info("a.png", 0, matched_sim="high")]), "wrong-type", "image_info[0].matched_sim"
    ),
    "no name and no address": (
        mmc4(image_info=[{"matched_text_index": 0, "matched_sim": 1}]), "missing-key", "image_info[0].image_name"
    ),
    "a name outside the root": (mmc4(image_info=[info("../a.png", 0)]), "outside-root", "image_info[0].image_name"),
    "an address as a name": (mmc4(image_info=[info(URL, 0)]), "remote-media", "image_info[0].image_name"),
    "an address that is no text": (
        mmc4(image_info=[info("a.png", 0, raw_url=3)]), "wrong-type", "image_info[0].raw_url"
    ),
    "an unknown key": (mmc4(text_lists=[]), "unknown-key", "text_lists"),
    "an unknown key of a picture": (mmc4(image_info=[info("a.png", 0, sim=1)]), "unknown-key", "image_info[0].sim"),
    "a key that is not read": (mmc4(video="a.mp4"), "unsupported-key", "video"),
    "lists of two lengths": (obelics(texts=["One."]), "unequal-counts", "texts"),
    "no images": (obelics(images=None), "missing-key", "images"),
    "both at one position": (
        obelics(images=["a.png", None], texts=["One.", "Two."]), "text-or-image", "texts[0]"
    ),
    "neither at one position": (obelics(images=[None, None], texts=["One.", None]), "text-or-image", "texts[1]"),
    "a picture that is a number": (obelics(images=[3, None], texts=[None, "Two."]), "wrong-type", "images[0]"),
    "a path outside the root": (
        obelics(images=["/etc/passwd", None], texts=[None, "Two."]), "outside-root", "images[0]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_named_once_with_file_row_and_field(tmp_path: Path, what: str) -> None:
    row, fault, field = FAULTS[what]
    path = lines(saved(tmp_path, "a.png", "b.png"), mmc4(), row)
    report = check(path, format="mmc4")
    assert [(f.file, f.row, f.fault, f.field or None) for f in report.faults] == [(str(path), 2, fault, field)]
    assert (report.rows, report.good) == (2, 1)


def test_all_faults_of_a_page_are_found_in_one_look_also_behind_a_limit(tmp_path: Path) -> None:
    row = mmc4(text_list=["One two three.", 2], image_info=[info("a.png", 5), info("b.png", None)], mood=1)
    source = open_source(lines(tmp_path, row), pages=Pages(words=1))
    assert [f.field for f in source.read(0).faults] == [
        "mood", "text_list[1]", "image_info[0].matched_text_index", "image_info[1].matched_text_index",
    ]  # fmt: skip


def test_data_check_counts_what_rules_left_out_and_says_so(tmp_path: Path) -> None:
    path = lines(saved(tmp_path, "a.png"), mmc4(), mmc4(), obelics(images=[None], texts=["One."]))
    report = check(path, format="mmc4")
    assert report.left_out == {"missing-file": 2}
    assert not report.faults
    assert report.media == 1
    said = CliRunner().invoke(app, ["data", "check", str(path), "--format", "mmc4"])
    assert said.exit_code == 0, said.output
    assert "pictures left out of their documents: 2 missing-file" in said.output


@pytest.mark.parametrize("harm", ["broken", "two files", "conversations", "locked"])
def test_a_zip_that_holds_no_pages_is_refused(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "a.zip"
    row = json.dumps({"conversations": []} if harm == "conversations" else mmc4())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("a.jsonl", "b.jsonl")[: 2 if harm == "two files" else 1]:
            packed.writestr(name, row)
    if harm == "broken":
        path.write_bytes(path.read_bytes()[:-30])
    if harm == "locked":
        data = bytearray(path.read_bytes())
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(mark) + offset] |= 1  # encrypted
        path.write_bytes(bytes(data))
    with pytest.raises(DataError) as caught:
        open_source(path)
    assert caught.value.fault == ("corrupt-archive" if harm in ("broken", "locked") else "unknown-format")


def test_pages_and_conversations_do_not_share_a_file(tmp_path: Path) -> None:
    said = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi."}]}
    with pytest.raises(DataError, match="1 of llava, 1 of mmc4"):
        open_source(lines(tmp_path, mmc4(), said))


@pytest.mark.parametrize(("row", "joint"), [(mmc4(), " "), (obelics(), "\n\n")])
def test_pages_are_written_as_they_were_taken_and_read_back_equal(tmp_path: Path, row: Any, joint: str) -> None:
    last = {"images": [None, "a.png"], "texts": ["One.", None]}
    path = lines(saved(tmp_path, "a.png", "b.png"), row, last)
    written = write_rows(open_source(path, format="mmc4", pages=Pages(pictures=1)), tmp_path / "out.jsonl")
    assert written.kept == 2
    again = open_source(tmp_path / "out.jsonl")
    assert (shown(again), shown(again, 1)) == (["[a.png]", f"One. Two.{joint}Three."], ["One.", "[a.png]"])


def test_what_would_be_two_layouts_in_one_file_is_dropped_with_that_reason(tmp_path: Path) -> None:
    said = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi."}]}
    pages, talk = lines(saved(tmp_path, "a.png", "b.png"), mmc4()), lines(tmp_path, said, name="talk.jsonl")
    written = write_rows(Mix([open_source(pages), open_source(talk)], sizes=[1, 1]), tmp_path / "out.jsonl")
    assert (written.kept, written.dropped) == (1, {"mixed-layouts": 1})


def test_documents_ask_nothing(tmp_path: Path) -> None:
    source = open_source(lines(saved(tmp_path, "a.png", "b.png"), mmc4()))
    with pytest.raises(DataError, match="nothing to ask"):
        conversations_task(source).items()


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
            "A.<|endofchunk|>^B.<|endofchunk|>^C.<|endofchunk|>",
            "A.<|endofchunk|>·B.<|endofchunk|>·C.<|endofchunk|>",
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
    recipe = at_scale(load_recipe(name)[1], "tiny")
    tokenizer = load_tokenizer(recipe.model, added=recipe.added_tokens)
    added = [tokenizer.id(token) for token in recipe.added_tokens]
    model = build_model(recipe.model, vocab=tokenizer.vocab, added=added).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
        for parameter in model.fusion.parameters():
            if not parameter.any():
                parameter.fill_(0.5)
    stage = next(s for s in recipe.stages if s.data.kind == "interleaved")
    return recipe, model, Processor(tokenizer, stage.template, recipe.model)


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
        "flamingo", "idefics", "kosmos1", "kosmos2", "mm1", "multimodal_gpt", "open_flamingo", "vila",
    }  # fmt: skip
    [stage] = [s for s in load_recipe("open_flamingo")[1].stages if s.data.kind == "interleaved"]
    assert stage.data.pages == Pages(similarity=0.24, pictures=6)


@pytest.mark.parametrize("name", ["flamingo", "vila"])
def test_a_stage_learns_from_the_documents_of_scenes(name: str, scenes: Path, tmp_path: Path) -> None:
    stage = next(s for s in load_recipe(name)[1].stages if s.data.kind == "interleaved")
    assert scenes_rows(scenes, stage).name == "train_interleaved.jsonl"
    results = train(Job(recipe=name, out=tmp_path / "run", scale="tiny", scenes=scenes, stages=[stage.name]))
    assert (results[stage.name].steps, results[stage.name].dropped) == (2, {})
