"""How much of a prompt a model reads. Text encoders of a fixed length are given its beginning, and pipelines only log
that they cut the rest off; the reply tells the caller.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer


@dataclass(frozen=True)
class Reader:
    """A tokenizer of its own, since the pipelines' change as they are used, and the tokens that its encoder takes."""

    tokenizer: Tokenizer
    limit: int

    def read(self, prompt: str) -> int:
        """Characters of `prompt` that reach the encoder."""
        encoding = self.tokenizer.encode(prompt)
        special = sum(encoding.special_tokens_mask)
        ends = [end for _, end in encoding.offsets if end]
        room = self.limit - special
        return len(prompt) if len(encoding) <= self.limit else max(ends[:room])


def readers(pipe: Any, max_sequence_length: int | None) -> tuple[Reader, ...]:
    """Of a pipeline's CLIP and T5 encoders. `max_sequence_length`: tokens for T5, as the call has it.

    None for the encoders that read a prompt within a conversation: their limits are beyond what a request may hold, or
    kept as the family's `prompt_bytes`.
    """
    found = []
    for suffix in ("", "_2", "_3"):
        tokenizer = getattr(pipe, f"tokenizer{suffix}", None)
        kind = type(getattr(pipe, f"text_encoder{suffix}", None)).__name__
        if tokenizer is None or not kind.startswith(("CLIP", "T5")):
            continue
        own = copy.deepcopy(tokenizer.backend_tokenizer)
        own.no_truncation()
        own.no_padding()
        limit = tokenizer.model_max_length
        if kind.startswith("T5") and max_sequence_length:
            limit = min(limit, max_sequence_length)
        found.append(Reader(own, limit))
    return tuple(found)


def read(prompt: str, by: Sequence[Reader]) -> str:
    """The part of `prompt` that reaches a model, by the one of its readers that reads furthest."""
    return prompt[: max((reader.read(prompt) for reader in by), default=len(prompt))]
