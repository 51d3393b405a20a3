"""What runs the model while responses are written: our own decoder where it can, else that of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from zerozoo.language.decoder import OwnDecoder, why_not
from zerozoo.language.heads import decoder_hidden, head_logits
from zerozoo.language.models import LanguageModel
from zerozoo.language.products import MakeProjection, plain_projection
from zerozoo.language.samplers.cache import RoomyCache
from zerozoo.language.samplers.interface import pad_rows


class Decoder(Protocol):
    """Rows that are written side by side, in slots numbered from 0.

    Attributes:
        refills: whether prompts can be read while other rows are being written.
    """

    refills: bool

    def read(self, prompts: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> Tensor:
        """Read each prompt once into all its slots; (P, V) float32 logits of the first response token."""

    def advance(self, tokens: Tensor) -> Tensor:
        """Feed one token of every slot; (B,) -> (B, V) float32 logits of the next."""

    def keep(self, slots: Sequence[int]) -> None:
        """Go on with these slots only, numbered anew in that order."""


def make_decoder(
    policy: LanguageModel, prompts: Sequence[Sequence[int]], new: int, project: MakeProjection = plain_projection
) -> Decoder:
    """The decoder for a model, with room for these prompts and `new` tokens behind each.

    It reads the weights of now: make a new one after every optimiser step (trap 13).
    """
    if why_not(policy.model) is None:
        return OwnDecoder(policy.model, max(map(len, prompts)) + new, policy.autocast, project)
    return TransformersDecoder(policy, new)


class TransformersDecoder:
    """The model's own code with a cache that has room already. All rows start together."""

    refills = False

    def __init__(self, policy: LanguageModel, new: int) -> None:
        self.model, self.pad_id, self.new = policy.model, policy.pad_id, new

    def read(self, prompts: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> Tensor:
        """See `Decoder`. The slots must be 0, 1, 2 ... in this order."""
        device = self.model.device
        ids, mask = pad_rows(prompts, self.pad_id, "left")
        ids, mask = ids.to(device), mask.to(device)
        self.cache = RoomyCache(self.model.config.get_text_config().num_hidden_layers, ids.shape[1] + self.new)
        hidden = decoder_hidden(self.model, ids, mask, (mask.cumsum(1) - 1).clamp(min=0), self.cache)[:, -1]
        spread = torch.tensor([line for line, group in enumerate(slots) for _ in group], device=device)
        self.cache.take_rows(spread)
        self.mask, self.positions = mask[spread], (mask.sum(1) - 1)[spread]
        return head_logits(self.model, hidden)

    def advance(self, tokens: Tensor) -> Tensor:
        """See `Decoder`."""
        self.positions = self.positions + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.mask), 1))], 1)
        hidden = decoder_hidden(self.model, tokens[:, None], self.mask, self.positions[:, None], self.cache)
        return head_logits(self.model, hidden[:, -1])

    def keep(self, slots: Sequence[int]) -> None:
        """See `Decoder`."""
        rows = torch.tensor(slots, dtype=torch.int64, device=self.model.device)
        self.positions, self.mask = self.positions[rows], self.mask[rows]
        self.cache.take_rows(rows)
