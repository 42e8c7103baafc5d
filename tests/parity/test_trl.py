"""Losses of preferences against TRL's own code: its trainers' losses on random log-probabilities, and a step of DPO.

TRL's trainers take the log-probabilities of tokens from a model. Here a table of random numbers stands for the model,
float64, one number a token, so that nothing but the loss is compared, with its gradient; ours is the objective, given
settings as a recipe has them. The tolerance, 1e-12, is for sums in another order; measured worst case: 4e-16. ORPO's
code computes in float32: 1e-6 there.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from llava_fixtures import IMAGE_TOKEN, published, shaken
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from conftest import published_tokenizer
from quintet.answers import Answer, Answers
from quintet.components.llms.weights import hf_name
from quintet.data.processor import Processor
from quintet.data.tokenizer import Tokenizer
from quintet.model.convert import import_model
from quintet.model.mllm import MLLM, Output
from quintet.recipes._templates import VICUNA_V1
from quintet.training.objectives import pair_losses as P
from quintet.training.objectives.preference import Preference, Term, preference, reference_logps
from quintet.values import Batch, Features, Node, Sample, Targets, Tokens
from systems import says, shown, user

pytestmark = [
    # TRL's notice that its CPO and ORPO may change.
    pytest.mark.filterwarnings("ignore::trl.import_utils.TRLExperimentalWarning"),
    # It asks under the old name whether activations are recomputed.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]

TOLERANCE = 1e-12
BETA, EPS = 0.3, 0.15
PAIRS, LENGTH, WORDS = 5, 12, 64
ENDS = (1, 2)
"""Tokens that nothing but a better answer ends with, and nothing but a worse one."""


# ---- what stands for a model -------------------------------------------------------------------------------------
class Told(nn.Module):
    """Every token is as likely as a table says, whatever stands before it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(WORDS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.logps = nn.Parameter(-drawn.abs() - 0.05)

    def forward(self, *, input_ids: Tensor, labels: Tensor, **unread: Any) -> SimpleNamespace:
        said = self.logps[input_ids[:, 1:]] * (labels[:, 1:] != -100)
        nothing = torch.zeros_like(said)
        return SimpleNamespace(log_probs=said, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def answers(pairs: int, *, equal: bool = False) -> dict[str, Tensor]:
    """Better answers, then the worse ones, as the trainer's collator gives them: a prompt of 3 tokens, then 2 to 9."""
    random = torch.Generator().manual_seed(7)
    ids = torch.randint(3, WORDS, (2 * pairs, LENGTH), generator=random)
    lengths = torch.randint(5, LENGTH + 1, (2 * pairs, 1), generator=random)
    if equal:
        lengths = torch.full_like(lengths, LENGTH)
    ids.scatter_(1, lengths - 1, torch.tensor(ENDS).repeat_interleave(pairs)[:, None])
    column = torch.arange(LENGTH)
    whole = (column < lengths).long()
    return {"input_ids": ids, "attention_mask": whole, "completion_mask": whole * (column >= 3)}


def logps(model: Told, batch: dict[str, Tensor]) -> Tensor:
    """Log-probabilities of the tokens of answers, float64[2 · pairs, LENGTH]; 0 elsewhere."""
    return model.logps[batch["input_ids"]] * batch["completion_mask"]


def trainer(folder: Path, kind: Any = DPOTrainer, *, models: tuple[Any, Any] | None = None, **settings: Any) -> Any:
    """One of TRL's trainers of a policy and a reference; where `Told` stands for them it wants models all the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    row = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}
    config: Any = DPOConfig
    if kind is KTOTrainer:
        row, config = {"prompt": ["a", "a"], "completion": ["b", "c"], "label": [True, False]}, KTOConfig
        settings["per_device_train_batch_size"] = 2
    tiny = LlamaConfig(
        vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=1
    )
    plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True}
    policy, reference = models or (LlamaForCausalLM(tiny), LlamaForCausalLM(tiny))
    return kind(
        model=policy,
        ref_model=reference,
        args=config(output_dir=str(folder), **plain, **settings),
        train_dataset=Dataset.from_dict(row),
        processing_class=published_tokenizer(bos="<s>"),
    )


def compared(made: Any, batch: dict[str, Tensor], policy: Told, reference: Told, ours: Tensor) -> None:
    """`ours`, a mean over pairs, is the trainer's loss, and so is its gradient."""
    made.ref_model = reference
    theirs = made.compute_loss(policy, batch)
    (slope,) = torch.autograd.grad(theirs, policy.logps)
    (mine,) = torch.autograd.grad(ours, policy.logps)
    assert slope.abs().max() > 1e-3, "a loss that nothing moves proves nothing"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(mine, slope, atol=TOLERANCE, rtol=0)


# ---- DPO and its siblings ----------------------------------------------------------------------------------------
class Read(nn.Module):
    """A table as the objective meets a model: no media, and the log-probability of each target."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        self.told = told

    def look(self, batch: Batch) -> dict[str, Features]:
        return {}

    def forward(self, batch: Batch, *, only_targets: bool, seen: object) -> Output:
        return Output(self.told.logps, read=batch.targets.slots)

    def target_logps(self, output: Output, targets: Targets) -> Tensor:
        return output.hidden[targets.ids]


def objective(policy: Told, reference: Told, batch: dict[str, Tensor], how: Preference) -> Tensor:
    """Our objective with these settings, a mean over pairs; a row of the trainer's batch is an answer of its pair."""
    row, column = batch["completion_mask"].nonzero(as_tuple=True)
    ids, rows = batch["input_ids"][row, column], len(batch["input_ids"])
    known = {"reference": reference.logps.detach()[ids]}
    targets = Targets(torch.arange(len(ids)), ids, torch.ones(len(ids), dtype=torch.float64), row, known)
    node, told = torch.arange(rows), tuple(Answer(1.0 if at < rows // 2 else 0.0) for at in range(rows))
    compared = Answers(node, node + 1, node % (rows // 2), node, told)
    empty = torch.zeros(1, 1, dtype=torch.int64)
    asked = Batch(empty, empty, empty, empty, empty, targets, answers=compared)
    loss, count, _ = preference(cast(MLLM, Read(policy)), asked, how)
    return loss / count


LOSSES: dict[str, tuple[list[str], Preference]] = {
    "sigmoid": (["sigmoid"], Preference(beta=BETA)),
    "sigmoid of means": (["sigmoid_norm"], Preference(beta=BETA, average=True)),
    "robust": (["robust"], Preference(terms={"robust": 1.0}, beta=BETA, smoothing=EPS)),
    "hinge": (["hinge"], Preference(terms={"hinge": 1.0}, beta=BETA)),
    "ipo": (["ipo"], Preference(terms={"ipo": 1.0}, beta=BETA)),
    "bco_pair": (["bco_pair"], Preference(terms={"bco_pair": 1.0}, beta=BETA)),
}
"""TRL's names and our settings. Its `bco_pair` has no running mean of rewards (δ), nor has ours."""


@pytest.mark.parametrize(("names", "how"), LOSSES.values(), ids=LOSSES)
def test_a_loss_is_trls_on_random_log_probabilities(names: list[str], how: Preference, tmp_path: Path) -> None:
    policy, reference, batch = Told(1), Told(2), answers(PAIRS)
    made = trainer(tmp_path, loss_type=names, beta=BETA, label_smoothing=EPS)
    compared(made, batch, policy, reference, objective(policy, reference, batch, how))


def test_a_smoothed_sigmoid_is_trls_where_it_has_one(tmp_path: Path) -> None:
    """Its `aot` is cDPO after sorting the batch: of one pair nothing is sorted."""
    policy, reference, batch = Told(3), Told(4), answers(1)
    made = trainer(tmp_path, loss_type=["aot"], beta=BETA, label_smoothing=EPS)
    ours = objective(policy, reference, batch, Preference(beta=BETA, smoothing=EPS))
    compared(made, batch, policy, reference, ours)


@pytest.mark.parametrize(
    ("weights", "terms"),
    [
        ({"sigmoid": 1.0, "sft": 0.7}, {"sigmoid": 1.0, "nll": 0.7}),
        ({"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}, {"sigmoid": 0.8, "bco_pair": 0.2, "nll": 1.0}),
    ],
    ids=["rpo", "mpo"],
)
def test_a_mix_with_the_likelihood_of_the_better_answer_is_trls(
    weights: dict[str, float], terms: dict[Term, float], tmp_path: Path
) -> None:
    """Answers of one length: TRL's likelihood is a mean over the tokens of the batch, ours over each answer's."""
    policy, reference, batch = Told(5), Told(6), answers(PAIRS, equal=True)
    made = trainer(tmp_path, loss_type=list(weights), loss_weights=list(weights.values()), beta=BETA)
    ours = objective(policy, reference, batch, Preference(terms=terms, beta=BETA))
    compared(made, batch, policy, reference, ours)


# ---- KTO on pairs ------------------------------------------------------------------------------------------------
KTO = Preference(terms={"kto_pair": 1.0}, beta=BETA)


def move(reference: Told, policy: Told, batch: dict[str, Tensor], *, to: float) -> None:
    """Makes the reference's end markers such that the better and the worse answers gained `to` in the mean."""
    with torch.no_grad():
        gained = (logps(policy, batch) - logps(reference, batch)).sum(1).chunk(2)
        for end, side in zip(ENDS, gained, strict=True):
            reference.logps[end] += side.mean() - to


def test_kto_on_pairs_is_trls_where_both_means_are_the_divergence_that_it_estimates(tmp_path: Path) -> None:
    """TRL estimates one divergence from other answers; given the batch's own, that is the mean of either side."""
    policy, reference, batch = Told(7), Told(8), answers(PAIRS)
    move(reference, policy, batch, to=0.8)
    made = trainer(tmp_path, KTOTrainer, loss_type="kto", beta=BETA)
    divergence = {f"KL_{name}": value for name, value in batch.items()}
    label = torch.tensor([True] * PAIRS + [False] * PAIRS)
    # Theirs is a mean over answers, ours the sum of a pair's two.
    ours = objective(policy, reference, batch, KTO) / 2
    compared(made, batch | divergence | {"label": label}, policy, reference, ours)


def test_kto_on_pairs_is_apo_zero_where_no_side_gained_in_the_mean(tmp_path: Path) -> None:
    """Its baselines are 0 then."""
    policy, reference, batch = Told(9), Told(10), answers(PAIRS)
    move(reference, policy, batch, to=-0.5)
    made = trainer(tmp_path, loss_type=["apo_zero"], beta=BETA)
    compared(made, batch, policy, reference, objective(policy, reference, batch, KTO))


# ---- without a reference -----------------------------------------------------------------------------------------
def means(seed: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities per token of two answers, under 0."""
    drawn = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    won, lost = -drawn.exp() - 1e-3
    return won, lost


def settings(**held: Any) -> Any:
    """What a trainer's loss asks of its trainer."""
    return SimpleNamespace(accelerator=SimpleNamespace(device=torch.device("cpu")), beta=BETA, **held)


def test_simpo_is_the_loss_of_trls_cpo_trainer() -> None:
    from trl.experimental.cpo import CPOTrainer

    won, lost = means(11)
    held = settings(alpha=0.0, loss_type="simpo", simpo_gamma=0.5, label_smoothing=0.0)
    theirs = CPOTrainer.cpo_loss(held, won, lost)[0]
    torch.testing.assert_close(P.simpo(won, lost, beta=BETA, margin=0.5), theirs, atol=TOLERANCE, rtol=0)


def test_the_odds_ratio_is_the_loss_of_trls_orpo_trainer() -> None:
    """There λ is called β and the sign is turned where the loss is put together."""
    from trl.experimental.orpo import ORPOTrainer

    won, lost = (each.float() for each in means(12))
    theirs = ORPOTrainer.odds_ratio_loss(settings(), won, lost)[0]
    torch.testing.assert_close(BETA * P.odds(won, lost), -theirs, atol=1e-6, rtol=1e-6)


# ---- a step on pictures ------------------------------------------------------------------------------------------
def test_a_step_of_dpo_on_trees_has_the_loss_and_the_gradients_of_trls_trainer(
    letters: Tokenizer, tmp_path: Path
) -> None:
    """A LLaVA whose reference is another; TRL gets each answer as a row of its own, with the picture once more.

    1e-6 of the loss and 1e-5 of the largest gradient: float32, sums in another order.
    """
    before = published(vocab=300)
    before.save_pretrained(tmp_path / "reference")
    torch.manual_seed(5)
    theirs = shaken(published(vocab=300))
    theirs.save_pretrained(tmp_path / "policy")
    ours, _ = import_model(tmp_path / "policy")
    processor = Processor(letters, VICUNA_V1, ours.config)
    samples = [compare("A red circle.", "Two."), compare("Nothing at all.", "One blue square is here.")]
    batch = processor.batch(samples)
    known = {"reference": reference_logps(import_model(tmp_path / "reference")[0], batch)}
    batch = replace(batch, targets=replace(batch.targets, known=known))
    ours.train().requires_grad_(requires_grad=True)
    loss, count, _ = preference(ours, batch, Preference(beta=BETA))
    (loss / count).backward()

    made = trainer(tmp_path, models=(theirs, before), beta=BETA)
    pixels = ours.encoders["image"].normalise(torch.stack(batch.media["image"].values))
    told = made.compute_loss(
        theirs, paths([processor.tokens(s) for s in samples]) | {"pixel_values": pixels.repeat(2, 1, 1, 1)}
    )
    told.backward()
    torch.testing.assert_close(loss / count, told, atol=1e-6, rtol=0)
    found = dict(theirs.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in found.values() if p.grad is not None)
    for name, parameter in ours.llm.named_parameters():
        there = hf_name(name).replace("model.", "model.language_model.", 1)
        torch.testing.assert_close(parameter.grad, found[there].grad, atol=1e-5 * largest, rtol=0)


def paths(trees: list[Tokens]) -> dict[str, Tensor]:
    """The better answers of trees, each after its prompt, then the worse ones: rows as TRL's collator makes them."""
    ids, learnt = [], []
    for won in (True, False):
        for tree in trees:
            (node,) = [at for at, answer in tree.answers if bool(answer.score) == won]
            (item,), path = tree.items, (tree.enter == 0) | (tree.enter == node)
            words = tree.ids.clone()
            assert not (words == IMAGE_TOKEN).any(), "a letter is the image token"
            words[item.start : item.start + item.columns] = IMAGE_TOKEN
            ids.append(words[path])
            learnt.append((tree.weight != 0)[path].long())
    inputs, mask, whole = (
        pad_sequence(each, batch_first=True) for each in (ids, learnt, [torch.ones_like(row) for row in ids])
    )
    return {"input_ids": inputs, "attention_mask": whole, "completion_mask": mask}


def compare(better: str, worse: str) -> Sample:
    """Two answers about a picture."""
    branches = tuple(Node((says(words),), answer=Answer(score)) for words, score in ((better, 1.0), (worse, 0.0)))
    return Sample(Node((user(shown(len(better)), "What is here?"),), branches))
