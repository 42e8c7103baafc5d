"""A judge behind an address: any endpoint that speaks OpenAI's protocol. Only asked when it is named.

A key is taken from OPENAI_API_KEY and never written.
"""

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quintet.errors import ConfigError
from quintet.evaluation.judge import Asked
from quintet.evaluation.written import WARMER, WrittenJudge, in_words

__all__ = ["EndpointJudge"]

TIMEOUT = 120.0
MOST_BYTES = 1 << 20


class EndpointJudge(WrittenJudge):
    """`url` is the base address, as `http://127.0.0.1:8000/v1`; `model` as the endpoint names it."""

    def __init__(self, url: str, *, cache: Path, model: str = "") -> None:
        self.url = url.rstrip("/")
        self.model = model or os.environ.get("QUINTET_JUDGE_MODEL", "judge")
        name = f"{self.url} ({self.model})"
        super().__init__(name=name, identity=name, cache=cache)

    def say(self, prompts: Sequence[str], asked: Asked, *, again: int) -> Iterator[str]:
        """One request a prompt, each when it is its turn.

        Raises:
            ConfigError: the endpoint cannot be reached, or speaks otherwise.
        """
        for prompt in prompts:
            message = {"role": "user", "content": _content(asked, prompt)}
            yield self._post({"model": self.model, "temperature": WARMER if again else 0, "messages": [message]})

    def _post(self, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers
        )  # the user's own address, http or https
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                held = json.loads(answer.read(MOST_BYTES))
            # A refusal may come without content: nothing was said then.
            return str(held["choices"][0]["message"]["content"] or "")
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            raise ConfigError(
                f"the judge at {self.url} cannot be asked ({error}); is it running? What it said so far is kept: the "
                "same command goes on from there"
            ) from None
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(
                f"the judge at {self.url} did not answer as OpenAI's protocol has it ({error!r})"
            ) from None


def _content(asked: Asked, prompt: str) -> Any:
    """The picture and the prompt, or words alone."""
    if asked.caption or asked.picture is None:
        return in_words(asked, prompt)
    data = base64.b64encode(asked.picture.read()).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    return [picture, {"type": "text", "text": prompt}]
