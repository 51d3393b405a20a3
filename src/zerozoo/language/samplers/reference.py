"""The reference sampler: transformers' own generate. Slower; the yardstick of the parity test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from zerozoo.language.heads import causal_model
from zerozoo.language.models import LanguageModel
from zerozoo.language.samplers.interface import (
    Decoding,
    Ends,
    Samples,
    check_finite,
    check_prompts,
    cut_at_stop,
    pad_rows,
)


class TransformersSampler:
    """`generate` of transformers behind the interface of `Sampler`."""

    def __init__(self, policy: LanguageModel) -> None:
        self.policy = policy

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        generator: torch.Generator,
    ) -> Samples:
        """See `Sampler`. All responses are written at once."""
        check_prompts(prompts)
        ids, mask = pad_rows(prompts, self.policy.pad_id, "left")
        device = self.policy.model.device
        options: dict[str, Any] = {"do_sample": decoding.temperature > 0}
        if decoding.temperature > 0:
            options |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        stop = _Stop(Ends(self.policy, decoding), ids.shape[1], len(prompts) * samples)
        model = causal_model(self.policy.model)
        training = self.policy.model.training
        self.policy.model.eval()
        # generate draws from the global generator; it is seeded from ours and put back afterwards.
        with torch.random.fork_rng(), _plain_settings(model), self.policy.precision():
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            output = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.long().to(device),
                max_new_tokens=decoding.max_new_tokens,
                num_return_sequences=samples,
                pad_token_id=self.policy.pad_id,
                logits_processor=LogitsProcessorList([_Finite()]),
                stopping_criteria=StoppingCriteriaList([stop]),
                output_logits=True,
                return_dict_in_generate=True,
                **options,
            )
        self.policy.model.train(training)
        tokens = output.sequences[:, ids.shape[1] :].cpu()
        logits = torch.stack(output.logits, 1).float().cpu() / (decoding.temperature or 1.0)
        logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        lengths, stopped = torch.where(stop.stopped, stop.lengths, tokens.shape[1]).cpu(), stop.stopped.cpu()
        written = torch.arange(tokens.shape[1]) < lengths[:, None]
        rows = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        texts = self.policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return Samples(
            tokens=tokens.masked_fill(~written, self.policy.pad_id),
            lengths=lengths,
            logprobs=logprobs.masked_fill(~written, 0.0),
            stopped=stopped,
            groups=torch.arange(len(prompts)).repeat_interleave(samples),
            texts=[cut_at_stop(text, decoding.stop_strings) for text in texts],
            drawn=tokens.numel(),
        )


class _Stop(StoppingCriteria):
    """Our rule of ends. The one for stop strings in transformers also looks into the prompt, refuses some tokenizers
    and does not tell where a row ended."""

    def __init__(self, ends: Ends, prompt_length: int, rows: int) -> None:
        self.ends, self.prompt_length = ends, prompt_length
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=ends.ids.device)
        self.stopped = torch.zeros(rows, dtype=torch.bool, device=ends.ids.device)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        written = input_ids[:, self.prompt_length :]
        ended = self.ends.reached(written) & ~self.stopped
        self.lengths[ended] = written.shape[1]
        self.stopped |= ended
        return self.stopped.clone()


class _Finite(LogitsProcessor):
    """Says that a model is broken before a draw from NaN fails with an error of its own."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        check_finite(scores.logsumexp(-1))
        return scores


@contextmanager
def _plain_settings(model: Any) -> Iterator[None]:
    """Without the model's own generation config: a repetition penalty or top_k in it would bend the distribution,
    and `generate` reads it whatever it is given (trap 11)."""
    saved = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = saved
