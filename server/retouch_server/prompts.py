"""What becomes of a prompt on its way to a model. Most pipelines give their text encoders its beginning, and only log
that they cut the rest off: the reply tells the caller. Some take all of it or fail: `validation` asks here first.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.longcat_image.pipeline_longcat_image_edit import split_quotation
from tokenizers import Tokenizer

from .checkpoint import LoadError, one_line

# Stands for the prompt where a conversation is made only to see what comes before it.
_PROMPT = "PROMPT"
_CONTRACTION = re.compile(r"[a-zA-Z]+'[a-zA-Z]+")
_MANY = 64


def _whole(prompt: str) -> list[str]:
    return [prompt]


def _by_quotation(prompt: str) -> list[str]:
    """As LongCat's pipeline has it: what is in quotation marks letter by letter.

    It restores the i-th different contraction as up to i copies of another: `_MANY` are too long for it in any case,
    and more would take seconds.
    """
    if len(set(_CONTRACTION.findall(prompt))) > _MANY:
        return ["'"] * (_MANY * (_MANY + 1) // 2)
    parts = split_quotation(prompt)
    return [piece for part, quoted in parts for piece in (part if quoted else [part])]


@dataclass(frozen=True)
class Reader:
    """How one text encoder is given a prompt.

    tokenizer: of its own, since the pipelines' change as they are used.
    limit: tokens that it takes, the opening's and the special ones included; None: the pipeline cuts nothing off.
    opening: what the pipeline writes before the prompt.
    pieces: of a prompt, each tokenized alone.
    reserved: what stands for images, or divides the conversation that they are in: the pipeline fails on more of it.
    """

    tokenizer: Tokenizer
    limit: int | None
    opening: str = ""
    pieces: Callable[[str], Iterable[str]] = _whole
    reserved: frozenset[str] = frozenset()

    def read(self, prompt: str) -> int:
        """Characters of `prompt` that reach the encoder; one of which not all bytes do is not among them."""
        if self.limit is None:
            return len(prompt)
        text, alone = self.opening + prompt, not self.opening
        encoding = self.tokenizer.encode(text, add_special_tokens=alone)
        if len(encoding) <= self.limit:
            return len(prompt)
        added = encoding.special_tokens_mask  # not what the text itself has of them
        spans = [span for span, own in zip(encoding.offsets, added, strict=True) if not own]
        room = self.limit - sum(added)
        cut = min(spans[room][0], max((end for _, end in spans[:room]), default=0))
        return max(0, cut - len(self.opening))

    def tokens(self, prompt: str) -> int:
        """Of the prompt alone."""
        return sum(
            len(self.tokenizer.encode(piece, add_special_tokens=False))
            for piece in self.pieces(prompt)
        )


def readers(pipe: Any, max_sequence_length: int | None) -> tuple[Reader, ...]:
    """Of a pipeline's text encoders. `max_sequence_length`: tokens of a prompt, as the call has it.

    Raises LoadError where a tokenizer cannot do what the pipeline will ask of it.
    """
    processor = getattr(pipe, "processor", None) or getattr(pipe, "text_processor", None)
    if processor is not None:
        return (_among_images(processor.tokenizer, quotes=hasattr(pipe, "text_processor")),)
    if plain := tuple(_plain(pipe, max_sequence_length)):
        return plain
    # Flux2's is a processor around one.
    tokenizer = getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer)
    opening, limit = _opening(pipe), max_sequence_length
    if limit and (dropped := getattr(pipe, "prompt_template_encode_start_idx", 0)):
        limit = dropped + min(limit, pipe.tokenizer_max_length)
    return (Reader(_own(tokenizer), limit, opening),)


def _plain(pipe: Any, max_sequence_length: int | None) -> Iterator[Reader]:
    """Of CLIP and T5, which are given the prompt as it is."""
    for suffix in ("", "_2", "_3"):
        tokenizer = getattr(pipe, f"tokenizer{suffix}", None)
        kind = type(getattr(pipe, f"text_encoder{suffix}", None)).__name__
        if tokenizer is None or not kind.startswith(("CLIP", "T5")):
            continue
        said = max_sequence_length if kind.startswith("T5") else None
        yield Reader(_own(tokenizer), said or tokenizer.model_max_length)


def _among_images(tokenizer: Any, quotes: bool) -> Reader:
    """Of an encoder that is shown the images with the prompt."""
    added = tokenizer.added_tokens_decoder.values()
    reserved = frozenset(token.content for token in added if token.special)
    pieces = _by_quotation if quotes else _whole
    return Reader(_own(tokenizer), None, pieces=pieces, reserved=reserved)


def _opening(pipe: Any) -> str:
    """What comes before the prompt in the conversation that a pipeline makes of it."""
    template: str | None = getattr(pipe, "prompt_template_encode", None)
    if template:
        return template.partition("{}")[0]
    kind = type(pipe).__name__
    if kind == "ZImageOmniPipeline":  # the images' own encodings stand before this
        return "<|vision_end|>"
    said: Any = [{"role": "user", "content": _PROMPT}]
    if kind == "Flux2Pipeline":
        (said,) = format_input([_PROMPT], pipe.system_message)
    try:
        text: str = pipe.tokenizer.apply_chat_template(
            said, tokenize=False, add_generation_prompt=kind != "Flux2Pipeline"
        )
    # A template is a program, and may fail in its own way.
    except Exception as error:
        raise LoadError(f"its tokenizer's chat template fails: {one_line(error)}") from error
    return text.partition(_PROMPT)[0]


def _own(tokenizer: Any) -> Tokenizer:
    own: Tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)
    own.no_truncation()
    own.no_padding()
    return own


def read(prompt: str, by: Sequence[Reader]) -> str:
    """The part of `prompt` that reaches a model, by the one of its readers that reads furthest."""
    return prompt[: max((reader.read(prompt) for reader in by), default=len(prompt))]


def reserved(prompt: str, by: Sequence[Reader]) -> str | None:
    """The first token in `prompt` that only the pipeline may write."""
    found = (mark for reader in by for mark in sorted(reader.reserved) if mark in prompt)
    return next(found, None)


def tokens(prompt: str, by: Sequence[Reader]) -> int:
    """Of `prompt`, to the one of its readers that sees most."""
    return max((reader.tokens(prompt) for reader in by), default=0)
