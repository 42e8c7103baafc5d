"""A stage of training as data: what is learnt from what, which parts train and how fast."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, get_args

from quintet.components.lora import Lora
from quintet.config.base import Config
from quintet.data.completion import Completion
from quintet.data.contrast import Contrast
from quintet.data.sources.pages import Pages
from quintet.data.template import Template
from quintet.errors import ConfigError, nearest
from quintet.training.objectives.policy import Policy
from quintet.training.objectives.preference import LIVE, WORSE, Preference
from quintet.training.objectives.reward import Reward
from quintet.training.rollout import Rollouts

__all__ = ["Data", "Kind", "Rate", "Stage"]

Kind = Literal["captions", "instructions", "interleaved", "regions", "ocr", "text", "preferences"]
"""Of rows: `ocr` asks for what is written in a picture, `text` has no picture."""


@dataclass(frozen=True, kw_only=True)
class Rate(Config):
    """How a part trains. What trains and how fast is one fact: a part without a rate is frozen."""

    lr: float
    """Peak learning rate of AdamW; see `Stage.optimizer` for Muon."""
    lora: Lora | None = None
    """Low-rank adapters instead of the part's own weights."""
    upper: float = 1.0
    """Share of the part's layers that learn, counted from its output; what lies before them is frozen (ShareGPT4V)."""

    def __post_init__(self) -> None:
        if not 0 < self.upper <= 1 or (self.upper < 1 and self.lora):
            raise ConfigError(f"upper is {self.upper}; it is a share of a part's layers, over 0, and goes without lora")
        if self.lr <= 0:
            raise ConfigError(f"lr is {self.lr}; leave the part out of `train` to freeze it")

    @property
    def how(self) -> str:
        """What of the part learns, where it is not all of it.

        >>> Rate(lr=1e-4, upper=1 / 24).how, Rate(lr=1e-4, lora=Lora(rank=8, targets=("q_proj",))).how
        ('upper 1/24 of the layers', 'LoRA of rank 8')
        """
        if self.lora is not None:
            return f"LoRA of rank {self.lora.rank}"
        return f"upper {Fraction(self.upper).limit_denominator(100)} of the layers" if self.upper < 1 else ""


@dataclass(frozen=True, kw_only=True)
class Data(Config):
    """Which rows a stage learns from: the published set's name, and what kind of rows they are.

    At full scale `path` names the file (by `--data STAGE=PATH`); at the starter and tiny scales rows of the same kind
    come from Scenes.
    """

    name: str
    kind: Kind
    rows: int | None = None
    """Rows of the published set, for the planner; None if it is not known."""
    mixed: Mapping[str, float] = field(default_factory=dict)
    """Other kinds → their shares of the rows: `{"text": 0.6}` is 60 % without a picture. Of Scenes, not of files."""
    pages: Pages | None = None
    """What the paper takes of interleaved documents."""
    pairs: str = ""
    """How answers are made and compared where there is no file: a name of `quintet data pairs`."""

    def __post_init__(self) -> None:
        if not all(share > 0 for share in self.mixed.values()) or not sum(self.mixed.values()) < 1:
            raise ConfigError(f"mixed is {dict(self.mixed)}; shares of the rows are over 0, and under 1 together")
        others = set(get_args(Kind)) - {self.kind, "preferences"} if self.kind != "preferences" else set()
        for kind in self.mixed:
            if kind not in others:
                raise ConfigError(f"rows of kind {kind!r} cannot be mixed into {self.kind}{nearest(kind, others)}")


@dataclass(frozen=True, kw_only=True)
class Stage(Config):
    """One run of the loop."""

    name: str
    data: Data
    template: Template
    completion: Completion | None = None
    """Which samples give a part of their text and learn the rest; drawn anew in every epoch. None: no sample does."""
    train: Mapping[str, Rate]
    """Part → rate, by prefix of its name: `connectors`, `llm`, `encoders.image`, `fusion`, `regions`, `tokens`."""
    batch: int
    """Samples in a step, over all ranks and micro-batches."""
    epochs: float = 1.0
    steps: int | None = None
    """Steps instead of epochs."""
    warmup: float = 0.03
    """Share of the steps in which the rate rises linearly from 0."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    final: float = 0.0
    """The last step's rate as a share of the peak."""
    fused: bool = True
    """Whether the fusion stands around the LLM's blocks. Without, the LLM runs plain and the fusion does not train;
    when the stage ends it copies the LLM's weights anew (MoE-LLaVA's experts are made of a trained LLM)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: the LLM's hidden matrices by Muon (Jordan et al. 2024), everything else by AdamW; on one process."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    """On matrices; vectors (norms, biases) have none."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    objective: Literal["lm", "align", "prompts", "preference", "reward", "policy"] = "lm"
    """`lm`: the LLM learns the next token. `align`: a connector learns which caption is of which picture, from the
    pairs of a micro-batch; the LLM does not run (BLIP-2's first stage). `prompts`: a P-Former learns from text alone
    what the LLM should be given (DLP's first stage). `preference`: answers to the same prompt are compared (DPO).
    `reward`: a score head learns which answer is better. `policy`: the model learns from answers that it draws (PPO,
    GRPO)."""
    preference: Preference | None = None
    """What `preference` minimises."""
    reward: Reward | None = None
    """How `reward` learns."""
    policy: Policy | None = None
    """What `policy` minimises."""
    rollouts: Rollouts | None = None
    """How the answers that `policy` learns from are drawn."""
    contrast: Contrast | None = None
    """The better answer once more, about a picture made worse, for terms that compare the two (mDPO, POVID)."""
    differences: bool = False
    """Whether the tokens are marked in which the two answers of a pair differ (RLHF-V)."""
    row: int = 2048
    """Columns of a row; no sample may be longer."""
    micro: int = 8192
    """Columns of a micro-batch on one rank."""
    packing: bool = True
    too_long: Literal["drop", "error"] = "drop"
    """What happens to a sample of more than `row` tokens; it is never cut."""
    drop_limit: float = 0.01
    """The share of dropped samples at which the run stops."""
    muon_lr: float = 0.015
    """Peak learning rate of the matrices that Muon trains; `Rate.lr` stays the rate of all others."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Settings of the objective. `lm`: what it adds of the model's `Output.extra`, by name, and how much of it.
    `align`: how much `itc`, `itm` and `itg` count, 1 unless named."""

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError(f"stage {self.name!r} trains no part")
        if not self.fused and any(part.split(".")[0] == "fusion" for part in self.train):
            raise ConfigError(f"stage {self.name!r} trains the fusion but runs without it (fused=False)")
        if self.batch < 1:
            raise ConfigError(f"stage {self.name!r}: batch is {self.batch}; it counts samples and must be at least 1")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"stage {self.name!r}: steps is {self.steps}; a stage takes at least 1")
        for name in ("preference", "reward", "policy"):
            if (self.objective == name) != (getattr(self, name) is not None):
                raise ConfigError(f"stage {self.name!r}: `{name}` is for the objective {name!r}, which needs it")
        if (self.objective == "policy") != (self.rollouts is not None):
            raise ConfigError(f"stage {self.name!r}: `rollouts` are for the objective 'policy', which needs them")
        if self.preference and not self.contrast and self.preference.terms.keys() & set(WORSE):
            raise ConfigError(f"stage {self.name!r}: its terms compare with a picture made worse; set `contrast`")
        if self.preference and self.preference.needs_live_reference and not self.adapts:
            raise ConfigError(
                f"stage {self.name!r}: {' and '.join(t for t in self.preference.terms if t in LIVE)} run the model "
                "before the stage beside it: every part of `train` needs a lora that can be turned off"
            )
        if not self.epochs > 0:
            raise ConfigError(f"stage {self.name!r}: epochs is {self.epochs}; rows are read more than 0 times")

    @property
    def reads(self) -> bool:
        """Whether the LLM reads the rows."""
        return self.objective in ("lm", "preference", "reward", "policy")

    @property
    def adapts(self) -> bool:
        """Whether adapters are all that learns, and what the LLM does not read: without them it is the model before."""
        return all(rate.lora is not None for part, rate in self.train.items() if part != "score")

    @property
    def settings(self) -> Any:
        """What the objective is told."""
        return self.preference or self.reward or self.policy or self.extra

    def num_steps(self, rows: int) -> int:
        """Steps of the stage over a source of `rows` rows."""
        return self.steps if self.steps is not None else max(1, -(-int(rows * self.epochs) // self.batch))
