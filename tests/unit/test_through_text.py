"""Through text: what experts write stands where the picture stood, and is kept. About 20 s."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import byte_tokenizer, picture, picture_rows
from quintet.components.experts.expert import ExpertConfig
from quintet.components.experts.published import Captioner, Detector
from quintet.data.changes import changed
from quintet.data.contrast import Contrast
from quintet.data.media import decode_image
from quintet.data.pipeline import Plan, Planner, measure_with
from quintet.data.processor import Processor
from quintet.data.scenes import World, make_scenes, render, sample_scene
from quintet.data.scenes.reader import SceneReader, look
from quintet.data.sources import open_source
from quintet.data.template import Frame
from quintet.data.texts import Texts, Told
from quintet.errors import ConfigError
from quintet.lab.align import Start
from quintet.lab.pretrained import load_tokenizer
from quintet.lab.recipe import load_recipe
from quintet.lab.run import Job, train
from quintet.recipes._scale import at_scale
from quintet.recipes.captioner import CHAT
from quintet.training.folder import Metrics, RunFolder
from quintet.values import Media, Node, Ref, Sample, Text, Turn
from systems import shown

ASKED: list[str] = []
"""What the experts of these tests were asked, in order."""


@dataclass(frozen=True, kw_only=True)
class Says(ExpertConfig):
    """An expert that says the same of every picture."""

    said: str
    version: int = 1

    @property
    def writes(self) -> Literal["caption", "text", "objects"]:
        return "caption"

    def build(self) -> "Says":
        return self

    def __call__(self, value: Tensor) -> str:
        ASKED.append(f"{self.said} {tuple(value.shape)}")
        return self.said


@pytest.fixture(autouse=True)
def _nobody_asked_yet() -> None:
    ASKED.clear()


def asked(*parts: Any, answer: str = "A dog.") -> Sample:
    return Sample(Node((Turn("user", parts), Turn("assistant", (Text(answer),)))))


def experts(**said: str) -> dict[str, Mapping[str, ExpertConfig]]:
    return {"image": {name: Says(said=words) for name, words in said.items()}}


def processor(**said: str) -> Processor:
    """The recipe's processor at the tiny scale, with experts that say these words."""
    recipe = at_scale(load_recipe("captioner")[1], "tiny")
    model = replace(recipe.model, experts=experts(**said))
    return Processor(load_tokenizer(model), recipe.template, model)


# ---- the words in the text ---------------------------------------------------------------------------------------
def test_the_words_stand_where_the_picture_stood_a_line_an_expert() -> None:
    made = processor(Caption="A dog\n on  a sofa.", Text="", Objects="dog [0.10, 0.20, 0.30, 0.40]")
    tokens = made.tokens(asked(shown(), Text("What is it?")))
    spelt = made.tokenizer.decode(tokens.ids.tolist(), keep_special=True)
    assert spelt == (
        "<s>A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: Caption: A dog on a sofa.\n"
        "Objects: dog [0.10, 0.20, 0.30, 0.40]\nWhat is it? ASSISTANT: A dog.</s>"
    )
    assert not tokens.items, "nothing is left for an encoder"


def test_a_plain_llm_reads_them_a_told_picture_is_the_same_as_words_that_were_typed() -> None:
    """The recipe's trait: no encoder, no connector, and the tokens are those of text alone, position by position."""
    model = load_recipe("captioner")[1].model
    assert not model.encoders
    assert not model.connectors
    assert [e.writes for e in model.experts["image"].values()] == ["caption", "text", "objects"]
    made = processor(Caption="A dog on a sofa.", Text="STOP")
    told = made.tokens(asked(shown(), Text("What is it?")))
    typed = made.tokens(asked(Text("Caption: A dog on a sofa.\nText: STOP\nWhat is it?")))
    for name in ("ids", "weight", "enter", "exit", "order", "position", "parent"):
        assert torch.equal(getattr(told, name), getattr(typed, name)), name


def test_what_an_expert_writes_is_never_a_special_token() -> None:
    made = processor(Text="</s> <s>")
    specials = made.tokens(asked(shown(), Text("What?"))).ids
    without = made.tokens(asked(Text("What?"))).ids
    for token in ("</s>", "<s>"):
        index = made.tokenizer.specials[token]
        assert int((specials == index).sum()) == int((without == index).sum())


def test_pictures_are_numbered_in_frames_as_those_of_an_encoder() -> None:
    template = replace(CHAT, system="", media={"image": Frame(before="Picture {n}, ")}, place="written")
    made = replace(processor(Caption="x"), tokenizer=byte_tokenizer("</s>"), template=template)
    spelt = made.tokenizer.decode(made.tokens(asked(shown(1), shown(2), Text("Which?"))).ids.tolist())
    assert "Picture 1, Caption: x\nPicture 2, Caption: x\nWhich?" in spelt


def test_words_of_their_own_stay_and_media_without_experts_too() -> None:
    texts = Texts(experts(Caption="x"))
    own, sound = replace(shown(), text="mine"), Media("audio", Ref("a.wav", data=b"a"))
    told = texts.sample(asked(own, sound, shown()))
    assert [m.text for m in told.media()] == ["mine", None, "Caption: x"]


def test_a_modality_has_encoders_or_experts() -> None:
    seeing = at_scale(load_recipe("llava15")[1], "tiny").model
    with pytest.raises(ConfigError, match=r"\['image'\] has encoders and experts"):
        replace(seeing, experts=experts(Caption="x"))


def test_experts_see_the_picture_as_large_as_it_came() -> None:
    Texts(experts(Caption="x")).words(shown(height=20, width=30))
    assert ASKED == ["x (3, 20, 30)"]


# ---- kept --------------------------------------------------------------------------------------------------------
def test_a_picture_is_read_once_whatever_its_name_also_in_the_next_run(tmp_path: Path) -> None:
    first = Texts(experts(Caption="x", Text="y"), folder=tmp_path)
    twin = replace(shown(1), ref=replace(shown(1).ref, name="twin.png"))
    for medium in (shown(1), twin, shown(2), shown(1)):
        assert first.words(medium) == "Caption: x\nText: y"
    assert len(ASKED) == 4, "two pictures, two experts"
    again = Texts(experts(Caption="x", Text="y"), folder=tmp_path)
    assert again.words(shown(2)) == "Caption: x\nText: y"
    assert len(ASKED) == 4
    again.words(shown(3))
    assert len(ASKED) == 6


def test_another_expert_reads_anew_and_a_line_that_was_cut_short_is_nothing(tmp_path: Path) -> None:
    Texts(experts(Caption="x"), folder=tmp_path).words(shown(1))
    other = {"image": {"Caption": Says(said="x", version=2)}}
    Texts(other, folder=tmp_path).words(shown(1))
    assert len(ASKED) == 2
    for file in tmp_path.rglob("*.jsonl"):
        file.write_text(file.read_text() + '{"digest": "ab')
    assert Texts(experts(Caption="x"), folder=tmp_path).words(shown(1)) == "Caption: x"
    assert len(ASKED) == 2


def test_a_picture_that_cannot_be_read_drops_its_row_and_says_which(tmp_path: Path) -> None:
    path = picture_rows(tmp_path, 3)
    (tmp_path / "pictures" / "1.png").write_bytes(b"no picture")
    made = processor(Caption="x")
    source = Told(open_source(path), made.texts)
    plan = Plan(batch=3, steps=1, row=512, micro=512, seed=0)
    planner = Planner(source, made.template, made.tokenizer, measure_with({}, made.model.columns), plan)
    step = planner.step(0)
    assert step.seen == 3
    assert [(e.fault, e.row) for e in step.dropped] == [("unsupported-format", 2)]


# ---- aligned -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Adds(Says):
    """An expert that says how bright a picture is."""

    said: str = "sum"

    def __call__(self, value: Tensor) -> str:
        return f"{self.said} {int(value.long().sum())}"


@pytest.mark.parametrize("how", ["crop", "noise"])
def test_of_a_picture_made_worse_is_told_what_is_left_of_it(how: Literal["crop", "noise"], tmp_path: Path) -> None:
    """mDPO's and POVID's second tree: its words are of the other picture, or there would be nothing to compare."""
    picture(1).save(tmp_path / "1.png")
    row = {"image": "1.png", "question": "What is it?", "chosen": "A dog.", "rejected": "A cat."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    made = processor()
    texts = Texts({"image": {"Caption": Adds()}}, folder=tmp_path / "kept")
    source = Told(open_source(tmp_path / "pairs.jsonl"), texts)
    plan = Plan(batch=1, steps=1, row=1024, micro=1024, seed=0, contrast=Contrast(how=how))
    sample, tokens = Planner(source, made.template, made.tokenizer, measure_with({}, made.model.columns), plan)._read(0)
    whole, worse = (medium for root in (sample.root, *sample.others) for turn in root.turns
                    for medium in turn.parts if isinstance(medium, Media))  # fmt: skip
    pixels = torch.from_numpy(np.array(decode_image(whole.ref))).permute(2, 0, 1)
    assert whole.text == f"Caption: {Adds()(pixels)}"
    assert worse.ref.change.startswith(how)
    assert worse.text == f"Caption: {Adds()(changed(pixels, worse.ref.change))}" != whole.text
    spelt = made.tokenizer.decode(tokens.ids.tolist())
    assert str(whole.text) in spelt
    assert str(worse.text) in spelt


def test_it_is_aligned_on_pairs_of_its_own(tmp_path: Path) -> None:
    """Rows that a stage makes for itself are told as those of files are."""
    scenes = make_scenes(tmp_path / "scenes", 24, 0, World())
    train(Job(recipe="captioner", scale="tiny", out=tmp_path / "run", scenes=scenes))
    for method, reward in (("mdpo", ""), ("grpo", "exact")):
        rows = [] if method == "grpo" else ["stages.mdpo.data.pairs=truth"]
        train(Job(recipe=method, scale="tiny", out=tmp_path / method, scenes=scenes, start=Start(tmp_path / "run"),
                  reward=reward, sets=rows))  # fmt: skip
        assert Metrics.read(RunFolder(tmp_path / method).metrics)


# ---- published models --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def captioner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BLIP of a few thousand weights, as it is published."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "red", "dog", "[DEC]"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    text = {
        "vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": len(words) - 1, "sep_token_id": 3,
        "eos_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def test_a_published_captioner_says_what_it_says_in_transformers(captioner_folder: Path) -> None:
    from transformers import AutoProcessor, BlipForConditionalGeneration

    expert = Captioner.Config(source=str(captioner_folder), tokens=6).build()
    reference = BlipForConditionalGeneration.from_pretrained(captioner_folder).eval()
    processor = AutoProcessor.from_pretrained(captioner_folder)
    found = []
    for number in range(3):
        image = picture(number, height=40, width=60)
        inputs = processor(images=image, return_tensors="pt")
        ids = reference.generate(**inputs, max_new_tokens=6, do_sample=False)
        wanted = processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
        found.append(expert(torch.from_numpy(np.array(image)).permute(2, 0, 1)))
        assert found[-1] == wanted
    assert all(found)


def test_a_published_detector_names_what_it_is_sure_of_the_surest_first(tmp_path: Path) -> None:
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=[32, 32],
        patch_size=8, num_detection_tokens=5, id2label={0: "cat", 1: "dog", 2: "tree"},
        use_mid_position_embeddings=False,
    )  # fmt: skip
    model = YolosForObjectDetection(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(tmp_path)
    YolosImageProcessor(size={"height": 32, "width": 32}, pad_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path
    )
    image = torch.from_numpy(np.array(picture(1, height=32, width=32))).permute(2, 0, 1)
    every = Detector.Config(source=str(tmp_path), confidence=0.0).build()(image).split("; ")
    assert len(every) == 5
    assert all(name.split(" [")[0] in ("cat", "dog", "tree") for name in every)
    numbers = [float(n) for each in every for n in each.split("[")[1].rstrip("]").split(", ")]
    assert all(0 <= n <= 1 for n in numbers)
    two = Detector.Config(source=str(tmp_path), confidence=0.0, most=2).build()(image).split("; ")
    assert two == every[:2]
    assert Detector.Config(source=str(tmp_path), confidence=1.0).build()(image) == ""


@pytest.mark.parametrize("kind", [Captioner, Detector])
def test_weights_that_are_not_here_are_named_with_what_to_do(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be loaded .*pass --download"):
        kind.Config(source=str(tmp_path / "nowhere")).build()


# ---- the starter's -----------------------------------------------------------------------------------------------
def test_the_starters_experts_read_scenes_that_they_never_saw() -> None:
    """Of 60 held-out scenes: objects with their places, digit, word. Measured on 200: 0.99, 0.98 and 0.98."""
    right = {"objects": 0, "digit": 0, "word": 0}
    for number in range(60):
        scene = sample_scene(World(), random.Random(f"held-out/{number}"), "test")
        seen = look(torch.from_numpy(np.array(render(scene))).permute(2, 0, 1))
        ours, truth = (sorted((each.full_name, each.place) for each in s.objects) for s in (seen, scene))
        right["objects"] += ours == truth
        right["digit"] += (seen.digit and seen.digit.value) == (scene.digit and scene.digit.value)
        right["word"] += (seen.word and seen.word.text) == (scene.word and scene.word.text)
    assert min(right.values()) >= 54, right


def test_boxes_are_shares_of_the_picture_though_the_encoder_sees_a_padded_square() -> None:
    scene = next(s for s in (sample_scene(World(), random.Random(n), "test") for n in range(99)) if s.objects)
    square = render(scene)
    wide = Image.new("RGB", (128, 64), (127, 127, 127))
    wide.paste(square, (64, 0))
    seen = look(torch.from_numpy(np.array(wide)).permute(2, 0, 1))
    assert seen.objects
    assert all(each.box[0] >= 0.45 and each.box[2] <= 1 for each in seen.objects), "all stand in the right half"


def test_three_experts_at_every_scale_and_json_keeps_them() -> None:
    whole = load_recipe("captioner")[1]
    for scale in ("full", "starter", "tiny"):
        model = at_scale(whole, scale).model
        assert [e.writes for e in model.experts["image"].values()] == ["caption", "text", "objects"]
        assert type(model).from_json(json.loads(json.dumps(model.to_json()))) == model
    starter = at_scale(whole, "starter").model.experts["image"]
    assert all(isinstance(each, SceneReader.Config) for each in starter.values())
    assert len({each.identity() for each in starter.values()}) == 3
