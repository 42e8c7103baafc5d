"""Words and pictures into what a model takes, saved beside it. About 3 s."""

from pathlib import Path

import pytest
import torch

from conftest import byte_tokenizer, picture
from quintet.components.connectors.mlp import Mlp
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.llms.decoder import Decoder
from quintet.data.media import load_image
from quintet.data.processor import Processor
from quintet.data.template import Frame, Template
from quintet.errors import CheckpointError, DataError
from quintet.model.mllm import MLLM
from quintet.values import Media, Node, Ref, Sample, Text, Turn

CHAT = Template(name="chat", user=Frame(before="U:"), assistant="A:", end="</s>")
CONFIG = MLLM.Config(
    encoders={"image": CLIP_L_336.tiny()},
    connectors={"image": Mlp.Config()},
    llm=Decoder.Config(vocab=300, dim=16, depth=1, heads=2, kv_heads=1, ffn=16),
)


@pytest.fixture
def processor() -> Processor:
    return Processor(byte_tokenizer(), CHAT, CONFIG)


def sample(folder: Path, number: int | None, text: str) -> Sample:
    parts: tuple = (Text(text),)
    if number is not None:
        picture(number, height=20 + number, width=50).save(folder / f"{number}.png")
        parts = (Media("image", Ref(f"{number}.png", path=folder / f"{number}.png")), *parts)
    return Sample(Node((Turn("user", parts), Turn("assistant", (Text("y"),)))))


def test_a_batch_is_a_row_a_sample_with_its_own_pictures(processor: Processor, tmp_path: Path) -> None:
    samples = [sample(tmp_path, 1, "a"), sample(tmp_path, None, "a long question"), sample(tmp_path, 2, "b")]
    batch = processor.batch(samples)
    lengths = tuple(len(processor.tokens(s)) for s in samples)
    assert batch.lengths == lengths
    assert batch.media["image"].row.tolist() == [0, 2]
    for value, s in zip(batch.media["image"].values, (samples[0], samples[2]), strict=True):
        assert torch.equal(value, load_image(s.media()[0].ref, processor.spec("image")))


def test_an_open_batch_has_no_targets_at_its_end(processor: Processor, tmp_path: Path) -> None:
    open = Sample(Node((sample(tmp_path, None, "a").root.turns[0],)))
    assert processor.batch([open], open=True).targets.count == 0


def test_a_picture_that_is_not_there_is_named(processor: Processor, tmp_path: Path) -> None:
    gone = Sample(Node((Turn("user", (Media("image", Ref("gone.png", path=tmp_path / "gone.png")),)),)))
    with pytest.raises(DataError, match=r"gone\.png"):
        processor.batch([gone], open=True)


def test_it_comes_back_as_it_was_saved(processor: Processor, tmp_path: Path) -> None:
    processor.save(tmp_path)
    back = Processor.load(tmp_path, CONFIG)
    assert back.template == processor.template
    assert back.tokenizer.fingerprint == processor.tokenizer.fingerprint


@pytest.mark.parametrize("content", ["{}", "[]", '{"template": {}}', '{"template": {"end": 3}}', "no json"])
def test_a_file_that_describes_no_template_is_refused(processor: Processor, tmp_path: Path, content: str) -> None:
    processor.save(tmp_path)
    (tmp_path / "processor.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"processor\.json"):
        Processor.load(tmp_path, CONFIG)
