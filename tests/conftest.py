"""What all tests share: one thread, a cache folder of their own, a tokenizer made on the spot, and small pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors

from quintet.data.tokenizer import Tokenizer


@pytest.fixture(scope="session", autouse=True)
def _small_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests are small: more threads only wait for each other. And nothing is written to the user's cache."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUINTET_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _normal_numbers() -> Iterator[None]:
    """Training on a CPU flushes subnormal numbers to zero for the rest of its process; a test leaves none of that."""
    yield
    torch.set_flush_denormal(False)


def byte_tokenizer(*specials: str) -> Tokenizer:
    """A token a byte, so that lengths are counted by hand: a special token is one token, a letter is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = Tokenizer(backend, bos="<s>", eos="</s>", pad="<pad>")
    made.add(*specials)
    return made


def published_tokenizer(*words: str, front: str = "", back: str = "", bos: str | None = None, eos: str = "</s>") -> Any:
    """A byte tokenizer as transformers has them: `front` and `back` stand around every text, `words` are special."""
    from transformers import PreTrainedTokenizerFast

    base = ["<s>", "<pad>", "</s>", "<unk>", "[CLS]", "[SEP]"]
    letters = [*base, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Backend(models.BPE({letter: i for i, letter in enumerate(letters)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    around = [(token, letters.index(token)) for token in dict.fromkeys((front, back)) if token]
    if around:
        single = " ".join(piece for piece in (front, "$A", back) if piece)
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(words),
    )


def picture(number: int, *, height: int = 40, width: int = 40) -> Image.Image:
    """A picture that differs from every other: noise of its own seed over a colour of its own."""
    random = np.random.default_rng(number)
    colour = random.integers(0, 200, 3)
    return Image.fromarray((colour + random.integers(0, 56, (height, width, 3))).astype(np.uint8))


def picture_rows(folder: Path, n: int, *, text_only: int = 0) -> Path:
    """A LLaVA file of `n` pictures with a question and an answer each, and rows without a picture after them."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n + text_only):
        row: dict[str, object] = {"id": f"row-{i}"}
        question = f"Which number has this? {'Tell me. ' * (i % 3)}"
        if i < n:
            row["image"] = f"pictures/{i}.png"
            picture(i, height=30 + i % 5, width=40 - i % 7).save(folder / str(row["image"]))
            question = f"<image>\n{question}"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"It is number {i}."}]
        rows.append(row | {"conversations": turns})
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def letters() -> Tokenizer:
    """The tokenizer of one token a byte; do not add to it."""
    return byte_tokenizer()
