"""Learned rewards: a backbone with a scalar head that scores responses, their steps or their tokens.

A score is read at a true token of the response, found by counting and never by looking for padding or end tokens, so
neither the side of the padding nor a padding token that is also the end token can move it. Nothing is ever cut off: a
row that the model has no room for is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from zerozoo.language.cache import write_directory
from zerozoo.language.critic import ValueModel
from zerozoo.language.heads import causal_model
from zerozoo.language.logprobs import Sequences, split_by_tokens
from zerozoo.language.lora import merge_lora
from zerozoo.language.models import LanguageModel, as_dtype, wrap_model
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.scoring import take
from zerozoo.rewards.verifier import Problem, Verification, Verifier
from zerozoo.runs.errors import UserError

HEAD, ABOUT = "head.safetensors", "reward.json"


class RewardModel(nn.Module):
    """r(x, y) = head(state of the backbone after reading a token), normalised by (r - mean) / deviation.

    Args:
        language_model: is taken over; its vocabulary head is dropped.
        head: None for a head of zeros, whose first scores are all 0; `random_head` where members of an ensemble must
            differ.
        about: whatever a reader of the saved model should know; kept in reward.json.

    Attributes:
        mean, deviation: of the raw scores on held-out data, once `fit_normaliser` has measured them; 0 and 1 before.
    """

    def __init__(
        self, language_model: LanguageModel, head: nn.Linear | None = None, about: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.values = ValueModel(language_model, head)
        self.about = dict(about or {})
        self.mean, self.deviation = 0.0, 1.0

    @property
    def language_model(self) -> LanguageModel:
        return self.values.language_model

    def token_scores(self, sequences: Sequences) -> Tensor:
        """(M,) raw scores after every response token, row after row, in one forward pass."""
        self._check_room(sequences)
        every = self.values(sequences.prompts, sequences.responses, shared=False)  # one more a row: before its start
        lengths = torch.tensor([len(response) + 1 for response in sequences.responses])
        inner = torch.ones(len(every), dtype=torch.bool)
        inner[lengths.cumsum(0) - lengths] = False
        return every[inner.to(every.device)]

    def forward(self, sequences: Sequences) -> Tensor:
        """(N,) raw scores of whole responses: after their last token, the end token where there is one."""
        lengths = torch.tensor([len(response) for response in sequences.responses])
        scores = self.token_scores(sequences)
        return scores[(lengths.cumsum(0) - 1).to(scores.device)]

    def normalise(self, scores: Tensor) -> Tensor:
        """Raw scores in units of the held-out data: mean 0, deviation 1 there."""
        return (scores - self.mean) / self.deviation

    def _check_room(self, sequences: Sequences) -> None:
        room = self.language_model.max_context
        for prompt, response in zip(sequences.prompts, sequences.responses, strict=True):
            if len(prompt) + len(response) > room:
                raise UserError(
                    f"A row of {len(prompt) + len(response)} tokens does not fit into the reward model, which has room"
                    f" for {room}; nothing is cut off, because a score without the end of a response means nothing."
                )


def random_head(language_model: LanguageModel, seed: int) -> nn.Linear:
    """A head whose weights have a deviation of 1 / sqrt(H + 1), so that first scores are of the order of 1; no bias."""
    size = language_model.model.config.get_text_config().hidden_size
    head = nn.Linear(size, 1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn((1, size), generator=generator) / (size + 1) ** 0.5)
        head.bias.zero_()
    return head.to(language_model.model.device)


@dataclass(frozen=True)
class RewardScorer:
    """Scores any number of rows, in micro-batches by tokens, shared among processes; no gradient, no dropout.

    Attributes:
        model: the reward model.
        normalised: whether scores are normalised.
    """

    model: RewardModel
    tokens_per_microbatch: int = 2048
    ranks: Ranks = ALONE
    normalised: bool = True

    def responses(self, sequences: Sequences) -> Tensor:
        """(N,) scores of whole responses, float32 on the CPU."""
        every = self.tokens(sequences)
        return every.gather(1, (_lengths(sequences) - 1)[:, None])[:, 0]

    @torch.no_grad()
    def tokens(self, sequences: Sequences) -> Tensor:
        """(N, T) scores after every response token, float32 on the CPU; 0 where padded."""
        self.model.eval()
        lengths = _lengths(sequences)
        written = torch.arange(int(lengths.max())) < lengths[:, None]
        result = torch.zeros(written.shape)
        mine = list(range(len(lengths)))[self.ranks.rank :: self.ranks.size]
        costs = [len(sequences.prompts[row]) + int(lengths[row]) for row in mine]
        for batch in split_by_tokens(costs, self.tokens_per_microbatch):
            rows = [mine[place] for place in batch]
            flat = self.model.token_scores(take(sequences, rows))
            part = torch.zeros((len(rows), written.shape[1]))
            part[written[rows]] = (self.model.normalise(flat) if self.normalised else flat).float().cpu()
            result[rows] = part
        self.ranks.add([result])
        return result

    def rollouts(self, rollouts: Rollouts) -> Tensor:
        """(N,) scores of rollouts of the same tokenizer, by the ids that were drawn: an `ExtraReward` of the loop."""
        return self.responses(rollouts.sequences(range(len(rollouts))))


def fit_normaliser(scorer: RewardScorer, sequences: Sequences) -> None:
    """Measure mean and deviation of the raw scores on held-out responses; from then on scores are in their units.

    Members of an ensemble need it before they can be averaged or compared (card rm-ensembles).

    Raises:
        UserError: fewer than two rows, or equal scores.
    """
    scores = replace(scorer, normalised=False).responses(sequences).double()
    if len(scores) < 2 or bool(scores.min() == scores.max()):
        raise UserError("A reward model is normalised on at least two held-out responses with different scores.")
    scorer.model.mean = float(scores.mean())
    scorer.model.deviation = float(scores.std(unbiased=False))


def save_reward_model(model: RewardModel, directory: str | Path) -> None:
    """Write backbone and tokenizer in Hugging Face format, the head beside them, and reward.json with the normaliser.

    Adapters are merged. The folder appears complete or not at all; an earlier one is replaced.
    """
    language_model = model.language_model
    merge_lora(language_model)
    model.values.backbone = language_model.model

    def build(working: Path) -> None:
        causal = causal_model(language_model.model)
        causal.model.save_pretrained(working)
        if causal.generation_config is not None:
            causal.generation_config.save_pretrained(working)
        language_model.tokenizer.save_pretrained(working)
        head = {name: value.detach().cpu().contiguous() for name, value in model.values.head.state_dict().items()}
        save_file(head, working / HEAD)
        about = {"mean": model.mean, "deviation": model.deviation, "about": model.about}
        (working / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        write_directory(Path(directory).expanduser().absolute(), build, replace=True)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def load_reward_model(directory: str | Path, dtype: str = "float32", device: str = "cpu") -> RewardModel:
    """The reward model of a folder that `save_reward_model` wrote.

    Raises:
        UserError: the folder holds none.
    """
    folder = Path(directory).expanduser()
    if not (folder / ABOUT).is_file():
        raise UserError(f"{directory} is no reward model: it has no {ABOUT}.")
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=as_dtype(dtype), output_loading_info=True, trust_remote_code=False
        )
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    backbone, loading = loaded
    missing = [name for name in loading["missing_keys"] if not name.startswith("lm_head")]  # which is dropped anyway
    if missing:
        raise UserError(f"The reward model in {directory} is incomplete: it lacks the weights {sorted(missing)[0]}.")
    weights = load_file(folder / HEAD)
    head = nn.Linear(weights["weight"].shape[1], 1, dtype=weights["weight"].dtype)
    head.load_state_dict(weights)
    language_model = wrap_model(backbone.to(device).eval(), tokenizer, str(directory))
    model = RewardModel(language_model, head.to(device), about["about"])
    model.mean, model.deviation = about["mean"], about["deviation"]
    return model


@dataclass
class LearnedReward:
    """A `Verifier` whose verdicts are a rule's and whose scores are learned, for rewards that look at the score.

    The reward model reads texts, so its tokenizer may be another one than the policy's. Every response counts as ended:
    an end token is appended as in training. Where the tokenizer is the policy's, `RewardScorer.rollouts` is the better
    choice, which reads the ids that were drawn.

    Attributes:
        scorer: of the reward model.
        rule: says what is right, so that accuracies stay what they are.
        prompt: text of a problem's prompt, as the reward model was trained with.
    """

    scorer: RewardScorer
    rule: Verifier
    prompt: Callable[[Any], str]
    _prompts: dict[str, list[int]] = field(default_factory=dict)

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verification]:
        """See `Verifier`."""
        verifications = self.rule.verify(problems, responses)
        if not responses:
            return verifications
        language_model = self.scorer.model.language_model
        ends = language_model.eos_ids[0]
        tokens = [language_model.tokenizer.encode(text, add_special_tokens=False) for text in responses]
        sequences = Sequences(
            [self._prompt_ids(self.prompt(problem)) for problem in problems], [[*row, ends] for row in tokens]
        )
        scores = self.scorer.responses(sequences).tolist()
        return [replace(one, score=score) for one, score in zip(verifications, scores, strict=True)]

    def close(self) -> None:
        self.rule.close()

    def _prompt_ids(self, text: str) -> list[int]:
        if text not in self._prompts:
            self._prompts[text] = self.scorer.model.language_model.encode(text)
        return self._prompts[text]


def _lengths(sequences: Sequences) -> Tensor:
    return torch.tensor([len(response) for response in sequences.responses], dtype=torch.int64)
