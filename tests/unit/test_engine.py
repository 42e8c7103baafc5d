"""A trained model that answers: in batches, word by word, and it says what is missing. About 4 s."""

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from conftest import byte_tokenizer, picture
from quintet.components.connectors.mlp import Mlp
from quintet.components.encoders.presets import CLIP_L_336
from quintet.components.llms.decoder import Decoder
from quintet.data.processor import Processor
from quintet.data.template import Frame, Template
from quintet.errors import CheckpointError, DataError
from quintet.model.checkpoint import save_model
from quintet.model.generate import Sampling
from quintet.model.mllm import MLLM
from quintet.serving.engine import Engine
from quintet.values import Media, Node, Ref, Sample, Text, Turn

CHAT = Template(name="chat", user=Frame(before="U:"), assistant="A:", end="</s>")
CONFIG = MLLM.Config(
    encoders={"image": CLIP_L_336.tiny()},
    connectors={"image": Mlp.Config()},
    llm=Decoder.Config(vocab=259, dim=16, depth=1, heads=2, kv_heads=1, ffn=16, max_positions=64),
)


def ask(folder: Path, number: int | None, text: str) -> Sample:
    parts: tuple = (Text(text),)
    if number is not None:
        picture(number).save(folder / f"{number}.png")
        parts = (Media("image", Ref(f"{number}.png", path=folder / f"{number}.png")), *parts)
    return Sample(Node((Turn("user", parts),)))


@pytest.fixture(scope="module")
def model() -> MLLM:
    torch.manual_seed(3)
    made = CONFIG.build()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1:
                p.normal_(std=0.3)
    return made


@pytest.fixture
def engine(model: MLLM) -> Engine:
    return Engine(model, Processor(byte_tokenizer(), CHAT, CONFIG))


def says_only(model: MLLM, text: str, *, then: str) -> MLLM:
    """The model with weights by hand: each token is followed by the next letter of `text`, whatever came before."""
    ids = byte_tokenizer()
    torch.manual_seed(0)
    made = replace(CONFIG, llm=replace(CONFIG.llm, dim=300, heads=2, ffn=2, tie_head=False)).build()
    chain = (
        [ids.encode(":")[0][0], *ids.encode(text)[0], *ids.encode(then)[0]]
        if then != "</s>"
        else [ids.encode(":")[0][0], *ids.encode(text)[0], ids.specials["</s>"]]
    )
    with torch.no_grad():
        for block in made.llm.blocks:
            block.attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        made.llm.embedding.weight.copy_(torch.eye(259, 300))
        made.llm.lm_head.weight.zero_()
        for here, following in pairwise(chain):
            made.llm.lm_head.weight[following, here] = 1.0
    return made


def test_an_answer_ends_before_the_end_marker(model: MLLM, tmp_path: Path) -> None:
    taught = says_only(model, " cat", then="</s>")
    engine = Engine(taught, Processor(byte_tokenizer(), CHAT, taught.config))
    assert engine.answer([ask(tmp_path, 1, "What?"), ask(tmp_path, None, "And?")]) == ["cat", "cat"]


def test_an_end_marker_of_several_tokens_ends_it_too(model: MLLM, tmp_path: Path) -> None:
    """### is three tokens here; the answer stops at the third and is cut before the first."""
    taught = says_only(model, " dog#+", then="")
    template = replace(CHAT, end="#+")
    engine = Engine(taught, Processor(byte_tokenizer(), template, taught.config))
    assert engine.answer([ask(tmp_path, None, "What?")], max_tokens=50) == ["dog"]


def test_the_end_token_ends_an_answer_whatever_the_template(model: MLLM, tmp_path: Path) -> None:
    taught = says_only(model, " cat", then="</s>")
    engine = Engine(taught, Processor(byte_tokenizer(), replace(CHAT, end="#+"), taught.config))
    assert engine.answer([ask(tmp_path, None, "What?")], max_tokens=50) == ["cat"]


def test_answers_come_back_in_the_order_of_the_questions(engine: Engine, tmp_path: Path) -> None:
    asked = [ask(tmp_path, n, "abc" * (n % 3)) for n in range(5)]
    one_by_one = [engine.answer([sample], max_tokens=5)[0] for sample in asked]
    assert len(set(one_by_one)) > 1
    assert engine.answer(asked, max_tokens=5, batch_size=2) == one_by_one
    assert engine.answer([]) == []


def test_a_stream_is_the_answer_in_pieces(engine: Engine, tmp_path: Path) -> None:
    asked = ask(tmp_path, 1, "What?")
    pieces = list(engine.stream(asked, sampling=Sampling(max_tokens=8)))
    whole = engine.answer([asked], max_tokens=8)[0]
    # Bytes that never become a letter are held back in a stream, and are a mark at the end of a whole answer.
    assert len(pieces) > 1
    assert "".join(pieces) == whole.rstrip("\ufffd")


def test_a_fault_while_streaming_reaches_the_reader(engine: Engine, tmp_path: Path) -> None:
    gone = Sample(Node((Turn("user", (Media("image", Ref("gone.png", path=tmp_path / "gone.png")),)),)))
    with pytest.raises(DataError, match=r"gone\.png"):
        list(engine.stream(gone))


def test_a_prompt_that_is_too_long_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the model takes 64"):
        engine.answer([ask(tmp_path, None, "x" * 80)])


def test_a_saved_model_answers_alike_from_its_run_or_its_own_folder(engine: Engine, tmp_path: Path) -> None:
    save_model(engine.model, tmp_path / "run" / "model")
    engine.processor.save(tmp_path / "run" / "model")
    asked = [ask(tmp_path, 1, "What?"), ask(tmp_path, 2, "What?")]
    wanted = engine.answer(asked, max_tokens=6)
    for place in (tmp_path / "run", tmp_path / "run" / "model"):
        assert Engine.open(place).answer(asked, max_tokens=6) == wanted


def test_a_run_that_is_not_finished_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--resume"):
        Engine.open(tmp_path)


def test_a_reader_who_stops_reading_does_not_hold_the_model(engine: Engine, tmp_path: Path) -> None:
    stream = engine.stream(ask(tmp_path, 1, "What?"), sampling=Sampling(max_tokens=4))
    next(stream)
    stream.close()
    time.sleep(0)
    assert engine.answer([ask(tmp_path, 1, "What?")], max_tokens=2)
