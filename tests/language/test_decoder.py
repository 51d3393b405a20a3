"""Our own decoder: the logits of transformers, whatever happens to the rows beside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from zerozoo.language import decoder as module
from zerozoo.language.decoder import FAMILIES, OwnDecoder, why_not
from zerozoo.language.families import SUPPORTED, seeded_model, tiny_model
from zerozoo.language.int8 import use_int8_gradients
from zerozoo.language.lora import add_lora
from zerozoo.language.products import plain_projection

VARIANTS: dict[str, dict[str, Any]] = {
    **{family: {"family": family} for family in FAMILIES},
    **{f"{family} window": {"family": family, "sliding_window": 6} for family in ("mistral", "qwen2", "qwen3")},
    "llama plain heads": {"family": "llama", "kv_heads": 4},
    "llama one key head": {"family": "llama", "kv_heads": 1},
    "qwen3 tied": {"family": "qwen3", "tied": True},
}
PROMPTS = [[5, 6, 7], [8], [9, 4, 4, 8, 5, 6, 9, 7, 7, 4], [6, 6], [7, 5, 4, 9]]


def small_llama(**options: Any) -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return seeded_model(AutoConfig.for_model("llama", **{**sizes, **heads, **options}), seed=0)


class Rows:
    """The token lists that a decoder's slots should stand for, and the logits that transformers gives for them."""

    def __init__(self, model: nn.Module, capacity: int = 40, **options: Any) -> None:
        self.model, self.decoder = model, OwnDecoder(model, capacity, **options)
        self.rows: list[list[int]] = []
        self.random = torch.Generator().manual_seed(0)
        self.worst = 0.0

    def read(self, prompts: list[list[int]], slots: list[list[int]]) -> None:
        self.rows += [[] for _ in range(1 + max(max(group) for group in slots) - len(self.rows))]
        for prompt, group in zip(prompts, slots, strict=True):
            for slot in group:
                self.rows[slot] = list(prompt)
        self.compare(self.decoder.read(prompts, slots), prompts)

    def advance(self, times: int) -> None:
        for _ in range(times):
            tokens = torch.randint(4, 40, (len(self.rows),), generator=self.random)
            for row, token in zip(self.rows, tokens.tolist(), strict=True):
                row.append(token)
            self.compare(self.decoder.advance(tokens), self.rows)

    def keep(self, slots: list[int]) -> None:
        self.decoder.keep(slots)
        self.rows = [self.rows[slot] for slot in slots]

    def compare(self, logits: Tensor, rows: list[list[int]]) -> None:
        expected = [self.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1] for row in rows]
        assert logits.shape == (len(rows), len(expected[0]))
        self.worst = max(self.worst, float((logits.double() - torch.stack(expected).double()).abs().max()))


@torch.no_grad()
def worst_difference(model: nn.Module, **options: Any) -> float:
    """Prompts of several lengths, rows that leave, change places and are taken by other prompts."""
    rows = Rows(model, **options)
    rows.read(PROMPTS[:3], [[0, 3], [1], [4, 2]])
    rows.advance(5)
    rows.keep([4, 0, 1, 3])
    rows.advance(2)
    rows.read(PROMPTS[3:], [[2], [1, 4]])  # into the place of two rows, and behind the last one
    rows.advance(9)
    rows.keep([3])
    rows.advance(2)
    rows.keep([])
    rows.read(PROMPTS[:1], [[0, 1]])  # rows of one length
    rows.advance(3)
    return rows.worst


@pytest.mark.parametrize("weights_first", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, weights_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerozoo.language.products.weights_first", lambda: weights_first)
    assert worst_difference(tiny_model(**VARIANTS[variant]).model) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_common_start_is_read_once_and_changes_nothing(variant: str) -> None:
    start = [5, 6, 9, 4, 8, 8, 5, 7]
    prompts = [[*start, 6, 4, 4], [*start, 6], start, [*start, 9, 9, 9, 4, 5]]  # one of them is the start of all
    rows = Rows(tiny_model(**VARIANTS[variant]).model)
    rows.read(PROMPTS[:1], [[0]])
    seen: list[int] = []
    # Only the decoder's own passes have lines that start together; transformers reads one row at a time, whole.
    hook = rows.decoder.embedding.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    logits = rows.decoder.read(prompts, [[1, 2], [3], [4], [5]])
    hook.remove()
    rows.compare(logits, prompts)
    assert seen == [7, 4 * 6]  # seven shared tokens; four lines of at most six others
    rows.rows += [list(prompt) for prompt in (prompts[0], *prompts)]
    rows.advance(9)
    assert rows.worst < 1e-4


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]], [1, 2, 3, 4]),
        ([[1, 2, 3, 4, 5], [1, 2, 3, 9, 6]], []),  # three tokens are not worth it
        ([[1, 2, 3, 4, 5], [1, 2, 3, 4]], []),  # the second needs a token of its own
        ([[1, 2, 3, 4, 5, 6]], []),  # nobody to share with
        ([[7, 2, 3, 4, 5, 8], [7, 2, 3, 4, 5, 9], [7, 2, 3, 4, 9, 1]], [7, 2, 3, 4]),
        ([[1, 2, 3, 4, 5, 6]] * 3, [1, 2, 3, 4, 5]),
    ],
)
def test_what_prompts_share(prompts: list[list[int]], shared: list[int]) -> None:
    assert module._common_start(prompts) == shared


@pytest.mark.parametrize(
    "options",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 8},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ],
    ids=["biases", "wide heads", "linear", "llama3", "yarn"],
)
def test_options_of_the_config(options: dict[str, Any]) -> None:
    model = small_llama(**options)
    assert why_not(model) is None
    assert worst_difference(model) < 1e-4


def test_a_window_is_seen_by_the_comparison() -> None:
    narrow, wide = (tiny_model("mistral", sliding_window=window).model for window in (6, None))
    rows = Rows(narrow)
    rows.decoder = OwnDecoder(wide, 40)
    with torch.no_grad():
        rows.read(PROMPTS[2:3], [[0]])
    assert rows.worst > 0.1


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_products_in_bfloat16(family: str) -> None:
    """Close to float32, closer than another precision of everything else would be; the residual stream stays wide."""
    model = tiny_model(family).model
    assert 1e-4 < worst_difference(model, dtype=torch.bfloat16) < 0.3
    assert worst_difference(tiny_model(family, dtype="bfloat16").model) < 0.3


@torch.no_grad()
def test_room_and_batches_of_prompts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen2", sliding_window=6).model

    def logits() -> Tensor:
        decoder = OwnDecoder(model, 30)
        first = decoder.read(PROMPTS, [[0], [1], [2], [3], [4]])
        later = [decoder.advance(torch.full((5,), token)) for token in range(4, 16)]
        return torch.cat([first, *later])

    expected = logits()
    monkeypatch.setattr(module, "ROOM", 1)
    assert torch.equal(logits(), expected)
    monkeypatch.setattr(module, "PROMPT_TOKENS", 12)  # one prompt at a time
    torch.testing.assert_close(logits(), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_room_grows_with_the_rows_and_not_beyond_the_capacity() -> None:
    decoder = OwnDecoder(tiny_model("llama").model, 100)
    decoder.read([[4] * 10], [[0, 1]])
    assert decoder.keys[0].shape == (2, 2, 74, 8)
    for _ in range(70):
        decoder.advance(torch.tensor([4, 5]))
    assert decoder.keys[0].shape == decoder.values[1].shape == (2, 2, 100, 8)
    for _ in range(30):  # what comes after the last place means nothing, but breaks nothing either
        assert bool(decoder.advance(torch.tensor([4, 5])).isfinite().all())
    assert decoder.known == [100, 100]


@torch.no_grad()
def test_a_row_beyond_its_capacity_disturbs_no_other() -> None:
    rows = Rows(tiny_model("llama").model, capacity=12)
    rows.decoder.read(PROMPTS[2:3], [[1]])
    for _ in range(6):  # row 1 is full after two
        rows.decoder.advance(torch.tensor([4, 5]))
    rows.read(PROMPTS[:1], [[0]])
    alone = Rows(rows.model, capacity=12)
    alone.read(PROMPTS[:1], [[0]])
    for token in (6, 7, 8):
        together = rows.decoder.advance(torch.tensor([token, 9]))[0]
        torch.testing.assert_close(together, alone.decoder.advance(torch.tensor([token]))[0], rtol=0, atol=1e-5)


def test_which_models_it_takes() -> None:
    for family in SUPPORTED:
        reason = why_not(tiny_model(family).model)
        assert reason == (None if family in FAMILIES else f"it is of the family {family}")
    dynamic = small_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    assert why_not(dynamic) == "its positions are of the kind dynamic"
    assert why_not(small_llama(hidden_act="gelu")) == "its activation is gelu"
    model: Any = small_llama()
    model.lm_head = nn.Sequential(model.lm_head)
    assert why_not(model) == "its layers have been replaced"
    hooked: Any = small_llama()
    hook = hooked.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert why_not(hooked) == "it has hooks"
    hook.remove()
    assert why_not(hooked) is None
    use_int8_gradients(hooked)  # another backward pass only
    assert why_not(hooked) is None


def test_adapters_are_left_to_transformers() -> None:
    pytest.importorskip("peft")
    policy = tiny_model("llama")
    add_lora(policy, rank=2, alpha=4, seed=0)
    assert why_not(policy.model) == "it has adapters"


@torch.no_grad()
def test_products_can_be_made_in_another_way() -> None:
    """By name of the first layer they stand for, so that whoever makes them knows whose inputs they get."""
    model = tiny_model("qwen2").model
    seen: dict[str, tuple[int, ...]] = {}

    def project(weight: Tensor, bias: Tensor | None, name: str) -> Any:
        seen[name] = tuple(weight.shape)
        assert (bias is not None) == name.endswith("q_proj")
        return plain_projection(2 * weight if name == "1.mlp.down_proj" else weight, bias, name)

    decoder = OwnDecoder(model, 10, project=project)
    assert seen == {
        f"{layer}.{name}": shape
        for layer in (0, 1)
        for name, shape in {
            "self_attn.q_proj": (64, 32),
            "self_attn.o_proj": (32, 32),
            "mlp.gate_proj": (128, 32),
            "mlp.down_proj": (32, 64),
        }.items()
    }
    changed: Any = tiny_model("qwen2").model
    changed.model.layers[1].mlp.down_proj.weight.mul_(2)
    logits = decoder.read(PROMPTS[:1], [[0]])
    expected = changed(input_ids=torch.tensor(PROMPTS[:1])).logits[:, -1]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_it_keeps_no_copy_of_the_weights() -> None:
    """Memory: what the learner's weights become in place is what an old decoder computes with."""
    model = tiny_model("qwen2").model
    decoder = OwnDecoder(model, 10)
    before = decoder.read(PROMPTS[:1], [[0]])
    for parameter in model.parameters():
        parameter.mul_(1.1)
    after = decoder.read(PROMPTS[:1], [[0]])
    assert float((after - before).abs().max()) > 0.1
    assert torch.equal(after, OwnDecoder(model, 10).read(PROMPTS[:1], [[0]]))
