"""What the trap suite shares: models whose log-probs are known, hand-made rollouts, a small training loop, skips."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

import zerozoo
from zerozoo.language.algorithm import Algorithm
from zerozoo.language.build import make_optimizer, prompt_maker
from zerozoo.language.families import tiny_model
from zerozoo.language.logprobs import Sequences
from zerozoo.language.models import LanguageModel, wrap_model
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Decoding, Samples
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.update import Updater, UpdateSettings
from zerozoo.language.zero_rl import LoopSettings, ZeroRL
from zerozoo.rewards.terms import load_reward
from zerozoo.rewards.verifier import ClosingVerifier, Verdict, Verification
from zerozoo.runs.run import Run
from zerozoo.tasks.task import Task, TaskSet

SOURCE = Path(zerozoo.__file__).parent


@pytest.fixture(scope="session")
def source_trees() -> dict[str, ast.Module]:
    """The syntax tree of every file of the package."""
    return {str(path.relative_to(SOURCE)): ast.parse(path.read_bytes()) for path in sorted(SOURCE.rglob("*.py"))}


@pytest.fixture(scope="session")
def imported_packages(source_trees: dict[str, ast.Module]) -> set[str]:
    """Dotted names of everything the package imports, parents included ("torch.distributed" gives "torch" too)."""
    found: set[str] = set()
    for tree in source_trees.values():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
            for name in names:
                parts = name.split(".")
                found.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return found


@pytest.fixture
def absent(imported_packages: set[str]) -> Callable[[str, str], NoReturn]:
    """Skips a trap whose part is not written yet, and fails once something imports what that part is made of."""

    def skip(part: str, *made_of: str) -> NoReturn:
        present = imported_packages.intersection(made_of)
        if present:
            pytest.fail(f"zerozoo imports {', '.join(sorted(present))} now: write the test of this trap for the {part}")
        pytest.skip(f"no {part} yet: issue on the cluster")

    return skip


@pytest.fixture
def bigram() -> Callable[..., LanguageModel]:
    """Makes a llama in which only the last token matters: the logits after token i are row i of the (V, V) table.

    Attention and gated network add zero, the embedding of a token is its unit vector, and the head takes back the
    scale of the norm. Everything runs through transformers' own code.
    """

    def make(vocabulary: str, table: Tensor | dict[str, str], **options: Any) -> LanguageModel:
        """A dict says which character (or special token) almost surely follows which."""
        policy = tiny_model("llama", layers=1, hidden=32, vocabulary=vocabulary, **{"dtype": "float64", **options})
        ids = policy.tokenizer.get_vocab()
        if isinstance(table, dict):
            follows = torch.zeros(len(ids), len(ids))
            for first, second in table.items():
                follows[ids[first], ids[second]] = 30.0
            table = follows
        model: Any = policy.model
        layer, hidden = model.model.layers[0], model.config.hidden_size
        assert len(ids) <= hidden
        with torch.no_grad():
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            model.model.norm.weight.fill_(1.0)
            model.model.embed_tokens.weight.copy_(torch.eye(len(ids), hidden))
            model.lm_head.weight.zero_()
            scale = (1 / hidden + model.config.rms_norm_eps) ** 0.5
            model.lm_head.weight[:, : len(ids)] = (table.double().T * scale).to(model.lm_head.weight.dtype)
        return policy

    return make


@pytest.fixture
def end_padded() -> Callable[[LanguageModel], LanguageModel]:
    """The same network behind a tokenizer whose pad token is its end token, as SmolLM2's is."""

    def make(policy: LanguageModel) -> LanguageModel:
        policy.tokenizer.pad_token = policy.tokenizer.eos_token
        policy.model.config.pad_token_id = policy.model.generation_config.pad_token_id = policy.tokenizer.eos_token_id
        return wrap_model(policy.model, policy.tokenizer, policy.name)

    return make


@torch.no_grad()
def logprobs_alone(policy: LanguageModel, rows: Sequences, temperature: float = 1.0) -> Tensor:
    """(M,) float64 log-probs by transformers' own forward over each sequence alone: no padding, no cache."""
    parts = []
    for prompt, response in zip(rows.prompts, rows.responses, strict=True):
        logits = policy.model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
        table = (logits.double() / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
        parts.append(table.gather(-1, torch.tensor(response)[:, None])[:, 0])
    return torch.cat(parts)


@pytest.fixture
def alone() -> Callable[..., Tensor]:
    return logprobs_alone


@pytest.fixture
def drawn() -> Callable[..., tuple[Sequences, Tensor, Samples]]:
    """Samples for text prompts: the rows as a learner gets them, the sampler's log-probs behind one another, all."""

    def sample(
        policy: LanguageModel, prompts: Sequence[str], decoding: Decoding, samples: int = 2, sampler: Any = None
    ) -> tuple[Sequences, Tensor, Samples]:
        ids = [policy.encode(prompt) for prompt in prompts]
        generator = torch.Generator().manual_seed(0)
        result = (sampler or NativeSampler(policy)).sample(ids, samples, decoding, generator)
        lengths = result.lengths.tolist()
        rows = Sequences(
            [ids[group] for group in result.groups.tolist()],
            [result.tokens[row, :length].tolist() for row, length in enumerate(lengths)],
        )
        recorded = torch.cat([result.logprobs[row, :length] for row, length in enumerate(lengths)])
        return rows, recorded, result

    return sample


@pytest.fixture
def hand_made() -> Callable[..., Rollouts]:
    """Makes rollouts from token ids and advantages or rewards; the sampler's log-probs are nonsense on purpose."""

    def make(
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        advantages: Sequence[float] | None = None,
        rewards: Sequence[float] | None = None,
        pad_id: int = 0,
        columns: int = 0,
    ) -> Rollouts:
        number, longest = len(responses), max(columns, *(len(row) for row in responses))
        tokens = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in responses])
        lengths = torch.tensor([len(row) for row in responses])
        samples = Samples(
            tokens=tokens,
            lengths=lengths,
            logprobs=torch.where(torch.arange(longest) < lengths[:, None], -1.25, 0.0).double(),
            stopped=torch.ones(number, dtype=torch.bool),
            groups=torch.arange(len(prompts)).repeat_interleave(number // len(prompts)),
            texts=[""] * number,
        )
        tasks = [Task(f"task-{index}", f"question {index}", "0", "test") for index in range(len(prompts))]
        verdicts = [Verification(Verdict.WRONG, "", 0.0, False, 0.0)] * number
        values = torch.tensor(rewards if rewards is not None else [0.0] * number, dtype=torch.float64)
        rollouts = Rollouts(tasks, [list(prompt) for prompt in prompts], samples, verdicts, values)
        if advantages is not None:
            rollouts.advantages = torch.tensor(advantages, dtype=torch.float64)
        return rollouts

    return make


@pytest.fixture
def make_updater() -> Callable[..., Updater]:
    """Plain gradient descent unless an optimiser is given, so that a change of the weights is the gradient."""

    def make(
        policy: LanguageModel, algorithm: Algorithm, rate: float = 1.0, optimizer: Any = None, **settings: Any
    ) -> Updater:
        optimizer = optimizer or torch.optim.SGD(policy.model.parameters(), lr=rate)
        return Updater(policy, optimizer, algorithm, UpdateSettings(**{"max_gradient_norm": 1e9, **settings}))

    return make


class TextVerifier(ClosingVerifier):
    """Right or wrong by a rule on the text of the response; remembers which tasks it has seen."""

    def __init__(self, right: Callable[[str], bool]) -> None:
        self.right = right
        self.seen: list[list[str]] = []

    def verify(self, problems: Sequence[Any], responses: Sequence[str]) -> list[Verification]:
        self.seen.append([problem.id for problem in problems])
        verdicts = [Verdict.RIGHT if self.right(response) else Verdict.WRONG for response in responses]
        return [Verification(one, "", 0.0, False, float(one is Verdict.RIGHT)) for one in verdicts]


@pytest.fixture
def make_loop() -> Callable[..., ZeroRL]:
    """A training loop on a tiny model: 3 prompts a step of 11 tasks, 4 samples each, at most 5 tokens."""

    def make(directory: Path, steps: int = 2, right: Callable[[str], bool] | None = None, **options: Any) -> ZeroRL:
        policy = options.pop("policy", None) or tiny_model("llama", hidden=16, heads=2, kv_heads=1, layers=1)
        tasks = [Task(f"task-{index}", f"q{index}", "0", "test") for index in range(13)]
        algorithm = options.pop("algorithm", None) or Algorithm()
        settings = {"steps": steps, "prompts_per_step": 3, "samples_per_prompt": 4, "checkpoint_every": 2}
        temperature = options.pop("temperature", 1.0)
        learner = {"tokens_per_microbatch": 40, "temperature": temperature, **options.pop("learner", {})}
        return ZeroRL(
            policy=policy,
            sampler=options.pop("sampler", None) or NativeSampler(policy),
            tasks=TaskSet("traps", tuple(tasks[2:]), tuple(tasks[:2]), "math", "first-number", "{question}", (), 5),
            prompt=prompt_maker(policy, "{question}"),
            verifier=TextVerifier(right or (lambda text: sum(text.encode()) % 2 == 0)),
            reward=load_reward("correctness"),
            algorithm=algorithm,
            updater=Updater(policy, make_optimizer(policy, 0.01, 0.01), algorithm, UpdateSettings(**learner)),
            decoding=options.pop("decoding", None) or Decoding(5, temperature),
            settings=LoopSettings(**{**settings, **options.pop("settings", {})}),
            run=Run(directory, seed=3),
            **options,
        )

    return make


def all_weights(policy: LanguageModel) -> Tensor:
    return torch.cat([value.detach().flatten().clone() for value in policy.model.parameters()])


@pytest.fixture
def weights() -> Callable[[LanguageModel], Tensor]:
    """Every weight of a model, one vector, a copy."""
    return all_weights
