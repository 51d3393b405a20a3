"""Language backbones and LaMo: adapters by hand, what is trained, what padding and time can see, the two losses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from zerozoo.control.agents.lamo import LaMo, LanguagePolicy, ResidualEmbedding
from zerozoo.control.backbones import LanguageBackbone, LowRank
from zerozoo.control.networks import initialise
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch
from zerozoo.runs.errors import UserError

SPEC = Spec((3,), 2, discrete=False)
FAMILIES = ("gpt2", "llama")


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def language_model(family: str, blocks: int = 2, dropout: float = 0.1) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "gpt2":
            sizes = {"n_embd": 16, "n_layer": blocks, "n_head": 2, "vocab_size": 11, "n_positions": 64}
            model: Any = GPT2LMHeadModel(
                GPT2Config(**sizes, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
            )
        else:
            sizes = {"hidden_size": 16, "num_hidden_layers": blocks, "num_attention_heads": 2, "vocab_size": 11}
            model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=32, num_key_value_heads=1))
        for parameter in model.parameters():  # away from 0 and 1, so that nothing is forgotten unseen
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


def backbone(family: str, adapter: str = "lora", **options: Any) -> LanguageBackbone:
    made = LanguageBackbone(language_model(family), adapter, rank=3, alpha=6.0, dropout=0.0, **options)
    return initialise(made, generator())


def settings(family: str = "gpt2", **changes: Any) -> SimpleNamespace:
    base = {
        "model": language_model(family),
        "text": torch.arange(400) % 11,
        "adapter": "lora",
        "blocks": 0,
        "rank": 3,
        "lora_alpha": 6.0,
        "lora_dropout": 0.1,
        "embedding": "mlp",
        "language_weight": 0.5,
        "text_length": 12,
        "text_batch_size": 2,
        "length": 4,
        "longest": 10,
        "return_scale": 2.0,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "warmup_updates": 1,
        "max_gradient_norm": 1.0,
    }
    return SimpleNamespace(**{**base, **changes})


def window(size: int = 3, length: int = 4) -> Batch:
    draws = generator(2)
    obs, next_obs = torch.randn((2, size, length, 3), generator=draws)
    action = torch.rand((size, length, 2), generator=draws) * 2 - 1
    to_go = torch.randn((size, length), generator=draws)
    mask = torch.ones((size, length), dtype=torch.bool)
    mask[0, :2] = False
    timestep = torch.arange(length).expand(size, -1)
    rest = torch.zeros(size, length)
    return Batch(obs, action, rest, rest, next_obs, mask=mask, timestep=timestep, return_to_go=to_go)


# --- adapters


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_an_adapter_adds_a_product_of_low_rank(kind: str) -> None:
    base: Any = nn.Linear(4, 6) if kind == "linear" else Conv1D(6, 4)
    layer = initialise(LowRank(base, rank=2, alpha=8.0, dropout=0.0), generator())
    x = torch.randn((5, 3, 4), generator=generator(1))
    assert torch.equal(layer(x), base(x))  # nothing at the start
    assert 0 < float(layer.down.abs().max()) <= 0.5
    with torch.no_grad():
        layer.up.normal_(generator=generator(2))
    torch.testing.assert_close(layer(x), base(x) + 4 * (x @ layer.down @ layer.up))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_adapters_and_their_biases_learn(family: str) -> None:
    names = {name for name, p in backbone(family).named_parameters() if p.requires_grad}
    ends = {name.rsplit(".", 1)[-1] for name in names}
    assert ends == ({"down", "up", "bias"} if family == "gpt2" else {"down", "up"})
    layers = {name.rsplit(".", 2)[0] for name in names if name.endswith("bias")}
    assert all(name.endswith("c_attn") for name in layers)
    count = sum(name.endswith(".down") for name in names)
    assert count == 2 * (1 if family == "gpt2" else 3)
    assert all(p.requires_grad for p in backbone(family, "full").parameters())
    assert not any(p.requires_grad for p in backbone(family, "frozen").parameters())
    with pytest.raises(ValueError, match="unknown adapter 'half'"):
        backbone(family, "half")
    with pytest.raises(ValueError, match="neither GPT-2 nor in the form of Llama"):
        LanguageBackbone(SimpleNamespace(base_model_prefix="body", body=nn.Linear(1, 1)), "full")


# --- the backbone


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_language_models_own_forward(family: str) -> None:
    """With the embeddings of words as tokens, the model's own hidden states come out (for GPT-2 with its positions)."""
    made = backbone(family)
    ids = torch.randint(11, (2, 7), generator=generator(1))
    with torch.no_grad():
        words = made.model.get_input_embeddings()(ids)
        if family == "gpt2":
            words = words + made.decoder.wpe(torch.arange(7))
        hidden = made(words, torch.ones((2, 7), dtype=torch.bool))
        expected = language_model(family).eval()(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_future_and_the_padding_are_not_seen(family: str) -> None:
    made, draws = backbone(family), generator(3)
    tokens = torch.randn((2, 6, 16), generator=draws)
    mask = torch.ones((2, 6), dtype=torch.bool)
    mask[0, :2] = False
    with torch.no_grad():
        before = made(tokens, mask)
        assert bool(before.isfinite().all())
        changed = tokens.clone()
        changed[:, 4:] = torch.randn((2, 2, 16), generator=draws)
        changed[0, :2] = 9 * torch.randn((2, 16), generator=draws)
        after = made(changed, mask)
    torch.testing.assert_close(after[0, 2:4], before[0, 2:4])
    torch.testing.assert_close(after[1, :4], before[1, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:], atol=1e-3)


def test_positions_of_gpt2_are_for_text_only() -> None:
    made = backbone("gpt2")
    tokens = torch.randn((1, 5, 16), generator=generator(4))
    ids = torch.randint(11, (2, 6), generator=generator(5))
    seen = torch.ones((1, 5), dtype=torch.bool)
    with torch.no_grad():
        control, text = made(tokens, seen), made.text_loss(ids)
        made.decoder.wpe.weight.add_(torch.randn(made.decoder.wpe.weight.shape, generator=generator(6)))
        torch.testing.assert_close(made(tokens, seen), control, atol=1e-4, rtol=1e-4)
        assert abs(float(made.text_loss(ids) - text)) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_loss_is_the_models_own(family: str) -> None:
    ids = torch.randint(11, (3, 8), generator=generator(1))
    with torch.no_grad():
        expected = language_model(family).eval()(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(backbone(family).text_loss(ids), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_blocks_can_be_kept(family: str) -> None:
    made = backbone(family, blocks=1)
    assert (made.blocks, backbone(family).blocks, made.width) == (1, 2, 16)
    with torch.no_grad():
        tokens, seen = torch.randn((1, 3, 16), generator=generator(1)), torch.ones((1, 3), dtype=torch.bool)
        assert not torch.allclose(made(tokens, seen), backbone(family)(tokens, seen), atol=1e-3)


def test_nothing_is_drawn_from_the_global_generator() -> None:
    """In training too, although GPT-2 comes with three kinds of dropout."""
    agent = LaMo(SPEC, settings(), generator())
    before = torch.get_rng_state()
    agent.train()
    agent.update(window())
    assert torch.equal(torch.get_rng_state(), before)


# --- the policy


def test_embeddings_by_hand() -> None:
    layer = initialise(ResidualEmbedding(3, 5), generator())
    x = torch.randn((4, 3), generator=generator(1))
    hidden = x @ layer.first.weight[0] + layer.first.bias[0]
    expected = nn.functional.gelu(hidden) @ layer.second.weight[0] + layer.second.bias[0] + hidden
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("embedding", ["mlp", "linear"])
def test_tokens_are_normalised_before_time_is_added(embedding: str) -> None:
    policy = initialise(LanguagePolicy(SPEC, settings(embedding=embedding)), generator())
    seen: list[Tensor] = []
    policy.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    batch = window()
    policy(batch.obs, batch.action, batch.return_to_go, batch.timestep, batch.mask)
    tokens = seen[0].view(3, 4, 3, 16) - policy.time[batch.timestep][:, :, None]
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(3, 4, 3), atol=1e-5, rtol=0)
    first = policy.embed_return(batch.return_to_go.reshape(-1, 1)).view(3, 4, 16)
    torch.testing.assert_close(tokens[:, :, 0], nn.functional.layer_norm(first, (16,)), atol=1e-4, rtol=1e-3)


def test_actions_are_clipped_when_acting_and_free_in_training() -> None:
    policy = initialise(LanguagePolicy(SPEC, settings()), generator())
    batch = window()
    arguments = (batch.obs, batch.action, batch.return_to_go, batch.timestep, batch.mask)
    with torch.no_grad():
        policy.head.bias.fill_(3.0)
        assert float(policy.train()(*arguments).min()) > 1
        assert torch.equal(policy.eval()(*arguments), torch.ones(3, 4, 2))
        linear = initialise(LanguagePolicy(SPEC, settings(embedding="linear")), generator())
        linear.head.bias.fill_(3.0)
        assert 0.9 < float(linear.train()(*arguments).max()) < 1


@pytest.mark.parametrize(("adapter", "weight"), [("lora", 0.5), ("lora", 0.0), ("full", 0.0), ("frozen", 0.5)])
def test_frozen_weights_stay_bit_for_bit_and_both_losses_fall(adapter: str, weight: float) -> None:
    """The smoke of the card."""
    agent = LaMo(SPEC, settings(adapter=adapter, language_weight=weight, lora_dropout=0.0), generator())
    learning = {name for name, p in agent.policy.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in agent.policy.named_parameters()}
    fresh = backbone("gpt2", adapter)
    history = [agent.update(window()) for _ in range(30)]
    moved = {name for name, p in agent.policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= learning
    inside = {name for name in moved if name.startswith("backbone")}
    assert bool(inside) == (adapter != "frozen")
    assert {name.split(".")[0] for name in moved - inside} >= {"embed_obs", "hidden", "head", "norm", "time"}
    actions = [float(row["action_loss" if weight else "policy_loss"]) for row in history]
    assert actions[-1] < 0.7 * actions[0]
    assert ("text_loss" in history[0]) == (weight > 0)
    if weight:
        total = float(history[0]["action_loss"] + weight * history[0]["text_loss"])
        assert float(history[0]["policy_loss"]) == pytest.approx(total, rel=1e-5)
        with torch.no_grad():
            ids = agent.config.text.view(-1, 20)
            gained = float(fresh.text_loss(ids) - agent.policy.backbone.text_loss(ids))
        assert gained > 0.1 if adapter == "lora" else gained == 0


def test_text_is_drawn_only_if_it_counts() -> None:
    pieces = LaMo(SPEC, settings(), generator()).draw_text()
    assert torch.equal(pieces, (pieces[:, :1] + torch.arange(12)) % 11)
    for weight, draws in ((0.0, False), (0.5, True)):
        agent = LaMo(SPEC, settings(language_weight=weight, lora_dropout=0.0), generator())
        before = agent.random.get_state()
        agent.update(window())
        assert torch.equal(agent.random.get_state(), before) != draws


def test_it_plays_like_a_decision_transformer_and_resumes_exactly() -> None:
    agent, other = (LaMo(SPEC, settings(), generator()) for _ in range(2))
    agent.aim(5.0)
    for _ in range(3):
        agent.update(window())
    other.load_state(agent.state())
    for one in (agent, other):
        one.update(window())
    assert all(torch.equal(value, other.state()[name]) for name, value in agent.state().items())
    obs = torch.randn((2, 3), generator=generator(8))
    assert torch.equal(agent.player(2).act(obs), other.player(2).act(obs))


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="embedding must be mlp or linear, not 'sine'"):
        LanguagePolicy(SPEC, settings(embedding="sine"))
    for spec in (Spec((3,), 2, discrete=True), Spec((3, 3, 1), 2, discrete=False)):
        with pytest.raises(UserError, match="LaMo needs vectors as observations and continuous actions"):
            LanguagePolicy(spec, settings())
