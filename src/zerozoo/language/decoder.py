"""A decoder of our own for models of the Llama type, for writing many responses at once.

It reads the learner's parameters and computes what transformers computes, in fewer steps: keys and values are written
into room that exists already, where every row has positions of its own, so that a finished row can make place for a new
prompt at any time; the queries that share a key head are one block of the attention (Ainslie et al. 2023, arXiv
2305.13245), so no key is repeated. It keeps no copy of the weights unless they are needed in another precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zerozoo.language.device import full_products
from zerozoo.language.heads import DOOR, causal_model
from zerozoo.language.products import MakeProjection, Products, make_products, plain_projection

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
# Others make the angles depend on the longest position of the batch, or turn only part of a head.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ROOM = 64  # positions that the cache grows by at least
PROMPT_TOKENS = 8192  # prompts are read in batches of at most that many padded tokens

SHARED_FROM = 4  # tokens that prompts have in common from which on they are read once for all

# With so many tokens or more to go, weights of up to so many bytes are laid out anew for the number of rows. That takes
# as long as a step or a few, and the memory of the weights once more.
PREPARE_FROM = 32
PREPARE_BYTES = 2 * 2**30


def can_pack(model: nn.Module) -> bool:
    """Whether the layers of a model, adapters included, are those that `packing` calls one by one.

    Not while attention drops out: that is left to transformers.
    """
    causal = causal_model(model)
    if _strange(causal) is not None:
        return False
    return not any(layer.self_attn.training and layer.self_attn.attention_dropout for layer in causal.model.layers)


def why_not(model: nn.Module) -> str | None:
    """Why this decoder cannot stand for a model, in a few words; None when it can."""
    if hasattr(model, "get_base_model"):
        return "it has adapters"
    causal = causal_model(model)
    reason = _strange(causal)
    if reason is not None:
        return reason
    linear = [causal.lm_head, *(module for layer in causal.model.layers for module in _projections(layer))]
    return None if all(isinstance(module, nn.Linear) for module in linear) else "its layers have been replaced"


def _strange(causal: Any) -> str | None:
    """What makes a model another one than those that we know how to compute."""
    config = causal.config
    if config.model_type not in FAMILIES:
        return f"it is of the family {config.model_type}"
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in ROPE_TYPES:
        return f"its positions are of the kind {kind}"
    if getattr(config, "hidden_act", "silu") != "silu":
        return f"its activation is {config.hidden_act}"
    # The embedding is called as it is; transformers hooks it when it checkpoints activations. Sharded modules are
    # entered by their own door.
    hooked = (module for module in causal.modules() if module._forward_hooks or module._forward_pre_hooks)
    if any(module is not causal.model.embed_tokens and not hasattr(module, DOOR) for module in hooked):
        return "it has hooks"
    return None


def _projections(layer: Any) -> tuple[Any, ...]:
    attention, network = layer.self_attn, layer.mlp
    return (
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        network.gate_proj,
        network.up_proj,
        network.down_proj,
    )


@dataclass(frozen=True)
class _Layer:
    """One layer's weights. Norms are (weight, epsilon); `window` is how far attention looks back, None: everywhere."""

    input_norm: tuple[Tensor, float]
    network_norm: tuple[Tensor, float]
    query_norm: tuple[Tensor, float] | None
    key_norm: tuple[Tensor, float] | None
    query_key_value: Products
    output: Products
    gate_up: Products
    down: Products
    window: int | None


_States = list[tuple[Tensor, Tensor]]  # keys and values (P, key heads, L, D), by layer


class OwnDecoder:
    """Writes rows side by side, each with a prompt and a length of its own.

    Rows are numbered by slots 0 .. B - 1. All sizes that shapes depend on are known to the host, so nothing waits for
    the device.

    Args:
        model: one that `why_not` has nothing against. Its weights are read now.
        capacity: longest prompt and response together.
        dtype: of the matrix products, None: that of the weights.
        project: makes the products; another one computes them in another way, such as in int8.
    """

    refills = True

    def __init__(
        self,
        model: nn.Module,
        capacity: int,
        dtype: torch.dtype | None = None,
        project: MakeProjection = plain_projection,
    ) -> None:
        causal = causal_model(model)
        attention = causal.model.layers[0].self_attn
        self.config = causal.config
        self.capacity = capacity
        self.head_dim = int(attention.head_dim)
        self.scaling = float(attention.scaling)
        self.heads = int(self.config.num_attention_heads)
        self.key_heads = int(self.config.num_key_value_heads)
        self.embedding = causal.model.embed_tokens
        self.device = causal.device
        self.layers = [_read_layer(layer, index, dtype, project) for index, layer in enumerate(causal.model.layers)]
        self.norm = _read_norm(causal.model.norm)
        self.head = make_products([causal.lm_head], dtype, plain_projection, "lm_head")
        positions = torch.arange(capacity, device=self.device)[None]
        angles = causal.model.rotary_emb(self.embedding.weight[:1, None], positions)
        self.cosines, self.sines = angles[0][0], signed_sines(angles[1][0])  # (capacity, head_dim)
        self.store = dtype or self.embedding.weight.dtype
        self.keys: list[Tensor] = [self._room(0, 0) for _ in self.layers]
        self.values: list[Tensor] = [self._room(0, 0) for _ in self.layers]
        self.lengths = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.known: list[int] = []  # the lengths as the host knows them
        self.prepared = 0  # rows that the products are prepared for
        size = sum(parameter.numel() * parameter.element_size() for parameter in causal.parameters())
        self.prepares = size <= PREPARE_BYTES

    def read(self, prompts: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts, each once, into the slots of its responses; slots behind the last one are added.

        The tokens that all of them begin with are read once for all.

        Returns:
            (P, V) float32 logits of the first response token.
        """
        rows = max(len(self.known), 1 + max(slot for group in slots for slot in group))
        self.known += [0] * (rows - len(self.known))
        for prompt, group in zip(prompts, slots, strict=True):
            for slot in group:
                self.known[slot] = len(prompt)
        self._make_room(rows)
        self.lengths = torch.tensor(self.known, device=self.device)
        longest = max(map(len, prompts))
        at_once = max(1, PROMPT_TOKENS // longest)
        starts = range(0, len(prompts), at_once)
        shared = self._read_shared(_common_start(prompts))
        return torch.cat([self._read(prompts[at : at + at_once], slots[at : at + at_once], shared) for at in starts])

    def advance(self, tokens: Tensor) -> Tensor:
        """Feed one token of every slot; (B,) -> (B, V) float32 logits of the next.

        A row that has filled its capacity has finished; what it gets from here on means nothing.
        """
        self.known = [min(length + 1, self.capacity) for length in self.known]
        self._make_room(len(self.known))
        self._prepare(len(self.known))
        positions = self.lengths.clamp(max=self.capacity - 1)
        self.lengths = positions + 1
        filled = max(self.known)
        masks = self._masks(positions, filled)
        angles = self.cosines[positions, None], self.sines[positions, None]
        rows = torch.arange(len(tokens), device=self.device)
        hidden = self.embedding(tokens)
        if self.layers[0].down.by_columns:
            hidden = hidden.t().contiguous().t()  # what is added to it lies so
        for number, layer in enumerate(self.layers):
            query, key, value = self._attention_inputs(layer, hidden, angles)
            self.keys[number][rows, :, positions] = key.to(self.store)
            self.values[number][rows, :, positions] = value.to(self.store)
            blocks = query.to(self.store).unflatten(1, (self.key_heads, -1))  # (B, key heads, queries of each, D)
            with full_products():
                mixed = self._attend(
                    blocks, self.keys[number][:, :, :filled], self.values[number][:, :, :filled], masks[layer.window]
                )
            hidden = self._finish_layer(layer, hidden, mixed.flatten(1))
        return self._logits(hidden)

    def _prepare(self, rows: int) -> None:
        """Make the products quick for that many rows, if there may be enough steps for it to pay."""
        if not self.prepares or rows == self.prepared or self.capacity - min(self.known) < PREPARE_FROM:
            return
        self.prepared = rows
        for layer in self.layers:
            for products in (layer.query_key_value, layer.output, layer.gate_up, layer.down):
                products.prepare(rows)
        self.head.prepare(rows)

    def keep(self, slots: Sequence[int]) -> None:
        """Go on with these slots only, numbered anew in that order."""
        rows = torch.tensor(slots, dtype=torch.int64, device=self.device)
        self.known = [self.known[slot] for slot in slots]
        self.lengths = self.lengths[rows]
        for number in range(len(self.layers)):
            self.keys[number] = self.keys[number][rows]
            self.values[number] = self.values[number][rows]

    def _read(self, prompts: Sequence[Sequence[int]], slots: Sequence[Sequence[int]], shared: _States) -> Tensor:
        """Read prompts whose first tokens have the given keys and values already; logits as `read`."""
        start = shared[0][0].shape[2] if shared else 0
        longest = max(map(len, prompts))
        ids = torch.zeros((len(prompts), longest - start), dtype=torch.int64)
        for line, prompt in enumerate(prompts):
            ids[line, : len(prompt) - start] = torch.tensor(prompt[start:])
        spread = torch.tensor([line for line, group in enumerate(slots) for _ in group], device=self.device)
        places = torch.tensor([slot for group in slots for slot in group], device=self.device)

        def keep(number: int, key: Tensor, value: Tensor) -> None:
            # The indexed rows come first, whole: (R, key heads, L, D).
            self.keys[number][places, :, :longest] = key[spread]
            self.values[number][places, :, :longest] = value[spread]

        hidden = self._read_tokens(ids.to(self.device), shared, keep)
        ends = torch.tensor([len(prompt) - 1 - start for prompt in prompts], device=self.device)
        return self._logits(hidden[torch.arange(len(prompts), device=self.device), ends])

    def _read_shared(self, tokens: Sequence[int]) -> _States:
        """Keys and values of tokens that several prompts begin with, by layer; nothing for none."""
        states: _States = []
        if tokens:
            ids = torch.tensor([list(tokens)], device=self.device)
            self._read_tokens(ids, [], lambda _, key, value: states.append((key, value)))
        return states

    def _read_tokens(self, ids: Tensor, shared: _States, keep: Callable[[int, Tensor, Tensor], None]) -> Tensor:
        """Run all layers on the tokens (P, L) that stand behind the shared ones; (P, L, H).

        keep: gets the number of each layer with keys and values (P, key heads, shared + L, D).
        """
        start = shared[0][0].shape[2] if shared else 0
        end = start + ids.shape[1]
        angles = self.cosines[start:end, None], self.sines[start:end, None]
        # Padding stands behind the prompts, where causal attention never looks.
        back = torch.arange(start, end, device=self.device)[:, None] - torch.arange(end, device=self.device)
        hidden = self.embedding(ids)
        for number, layer in enumerate(self.layers):
            query, key, value = (
                part.to(self.store).transpose(1, 2) for part in self._attention_inputs(layer, hidden, angles)
            )
            if shared:
                key, value = (
                    torch.cat([first.expand(len(ids), -1, -1, -1), own], 2)
                    for first, own in zip(shared[number], (key, value), strict=True)
                )
            keep(number, key, value)
            window = layer.window if layer.window is not None and layer.window < end else None
            plain = window is None and not shared
            with full_products():
                mixed = functional.scaled_dot_product_attention(
                    query,
                    key,
                    value,
                    attn_mask=None if plain else (back >= 0) & (back < (window or end)),
                    is_causal=plain,
                    scale=self.scaling,
                    enable_gqa=self.heads > self.key_heads,
                )
            hidden = self._finish_layer(layer, hidden, mixed.transpose(1, 2).flatten(2))
        return hidden

    def _attention_inputs(
        self, layer: _Layer, hidden: Tensor, angles: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (..., heads, D), keys and values (..., key heads, D), turned by their positions."""
        parts = layer.query_key_value(_rms_norm(hidden, *layer.input_norm))
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = _rms_norm(query, *layer.query_norm), _rms_norm(key, *layer.key_norm)
        return rotate(query, *angles), rotate(key, *angles), value

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, key heads, queries of each, D), (B, key heads, L, D) twice, (B, 1, 1, L) -> shape of the queries."""
        if self.device.type != "cpu":
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scaling)
        # The fused kernel of the CPU is made for many queries.
        scores = (query @ key.transpose(2, 3)).mul_(self.scaling)
        if mask is not None:
            scores += mask
        return scores.softmax(-1) @ value

    def _finish_layer(self, layer: _Layer, hidden: Tensor, mixed: Tensor) -> Tensor:
        (change,) = layer.output(mixed)
        hidden = hidden + change
        gate, up = layer.gate_up(_rms_norm(hidden, *layer.network_norm))
        (change,) = layer.down(functional.silu(gate) * up)
        return hidden + change

    def _logits(self, hidden: Tensor) -> Tensor:
        (logits,) = self.head(_rms_norm(hidden, *self.norm))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _masks(self, positions: Tensor, filled: int) -> dict[int | None, Tensor | None]:
        """What is added to the scores (B, 1, 1, filled), by window; None where every row sees all that is filled."""
        masks: dict[int | None, Tensor | None] = {}
        ahead = torch.arange(filled, device=self.device) - positions[:, None]  # above 0: not written by this row
        for window in {layer.window for layer in self.layers}:
            if min(self.known) == filled and (window is None or window >= filled):
                masks[window] = None
                continue
            hidden = (ahead > 0) if window is None else (ahead > 0) | (ahead <= -window)
            zeros = torch.zeros(hidden.shape, dtype=self.store, device=self.device)
            masks[window] = zeros.masked_fill_(hidden, float("-inf"))[:, None, None]
        return masks

    def _room(self, rows: int, length: int) -> Tensor:
        # Zeros, for what attention does not look at is still multiplied, by zero, and must be a number.
        return torch.zeros((rows, self.key_heads, length, self.head_dim), dtype=self.store, device=self.device)

    def _make_room(self, rows: int) -> None:
        """Room for that many rows and all known lengths; it doubles, so that short responses do not pay for long."""
        held, room = self.keys[0].shape[0], self.keys[0].shape[2]
        wanted = max(self.known)
        if rows <= held and wanted <= room:
            return
        if wanted > room:
            room = min(self.capacity, max(2 * room, wanted + ROOM))
        for states in (self.keys, self.values):
            for number, old in enumerate(states):
                states[number] = self._room(max(rows, held), room)
                states[number][:held, :, : old.shape[2]] = old


def _common_start(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """What all prompts begin with, as long as it is worth a pass of its own; one token of each is left."""
    first, last = min(map(list, prompts)), max(map(list, prompts))  # what these two share, all share
    most = min(map(len, prompts)) - 1
    same = next((place for place in range(most) if first[place] != last[place]), most)
    return first[:same] if same >= SHARED_FROM and len(prompts) > 1 else []


def _read_layer(layer: Any, index: int, dtype: torch.dtype | None, project: MakeProjection) -> _Layer:
    attention = layer.self_attn

    def products(*names: str) -> Products:
        return make_products([layer.get_submodule(name) for name in names], dtype, project, f"{index}.{names[0]}")

    return _Layer(
        input_norm=_read_norm(layer.input_layernorm),
        network_norm=_read_norm(layer.post_attention_layernorm),
        query_norm=_read_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=_read_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        query_key_value=products("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        output=products("self_attn.o_proj"),
        gate_up=products("mlp.gate_proj", "mlp.up_proj"),
        down=products("mlp.down_proj"),
        window=layer_window(attention),
    )


def layer_window(attention: Any) -> int | None:
    """How many tokens a layer looks back, itself included; None where it sees everything."""
    # Mistral's window is in its config; Qwen's layers have one each, or none.
    config = attention.config
    return getattr(config if config.model_type == "mistral" else attention, "sliding_window", None)


def _read_norm(norm: Any) -> tuple[Tensor, float]:
    return norm.weight, norm.variance_epsilon


def signed_sines(sines: Tensor) -> Tensor:
    """Sines (..., D) with the sign that turning a half of the head needs."""
    first, second = sines.chunk(2, -1)
    return torch.cat([-first, second], -1)


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): value i of a head is turned with value i + D / 2."""
    return heads * cosines + heads.roll(heads.shape[-1] // 2, -1) * sines


def _rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """In float32 inside, as transformers computes it, so that both agree in every precision."""
    wide = hidden.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(hidden.dtype)
