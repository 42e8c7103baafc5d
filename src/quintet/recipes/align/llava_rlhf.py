"""LLaVA-RLHF: PPO against a reward model that is told the facts of the picture (Sun et al. 2023, arXiv:2309.14525).

Notable: the reward model (`quintet align reward`, then `--reward RUN`) is asked for the quality of the answer and reads
the picture's captions behind it. Its number is not all: 2 for a right choice or half for a right "No", up to 10 off for
length, as the rows say (`caption_type`; `length_bonus`, nothing where a row has none), and −8 for an answer that does
not end; KL costs κ = 0.1 a token. Where paper and code differ the paper is the default, and the code's ways are
settings: a floor of 0 under each token's KL, and all shaped rewards, KL and penalties included, times ten (`--set
stages.ppo.rollouts.floor=true …times=10`). What the code can do and its scripts leave off is off here, too:
`whiten_rewards`, `bias`, `unended_replaces`. Policy, value and reward are adapters of one base: the value model reads
by its own; a reward model over the same base lends its own instead of being loaded beside, and is what the value model
begins as (the code sets its head to 0). Not here: the code cuts answers at stray tokens "?" of LLaMA's vocabulary.
"""

from collections.abc import Mapping

from quintet.data.template import Template
from quintet.recipes._method import Method, lora_on_llm
from quintet.recipes._recipe import Paper
from quintet.training.objectives.policy import VALUE, Policy
from quintet.training.rollout import Rollouts
from quintet.training.stage import Data, Rate, Stage


def method(template: Template) -> Method:
    """PPO with facts in the reward."""
    train: Mapping[str, Rate] = {**lora_on_llm(3e-5, rank=64, alpha=16, beside=(VALUE,)), "score": Rate(lr=3e-5)}
    return Method(
        stages=(
            Stage(
                name="ppo",
                data=Data(name="llava_ppo50k-aokvqa12k-vqa10k", kind="preferences", rows=72_000, pairs="descriptions"),
                template=template,
                train=train,
                batch=256,
                epochs=8.0,  # four passes over the prompts, whose answers are learnt from twice
                objective="policy",
                policy=Policy(clip=0.2, value=0.1, value_clip=0.2),
                rollouts=Rollouts(
                    prompts=512,
                    group=1,
                    epochs=2,
                    max_tokens=896,
                    temperature=1.0,
                    reward="",
                    advantage="gae",
                    kl=0.1,
                    gamma=1.0,
                    lam=1.0,
                    correct=2.0,
                    length=10.0,
                    unended=-8.0,
                ),
            ),
        ),
        paper=Paper(
            title="Aligning Large Multimodal Models with Factually Augmented RLHF",
            authors="Sun et al.",
            year=2023,
            arxiv="2309.14525",
        ),
    )
