"""How much of a prompt a model reads, held against what its pipelines do with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from retouch_server import prompts
from retouch_server.catalog import POCKET
from retouch_server.engine.edit import Edit
from retouch_server.engine.engine import Engine
from retouch_server.loading import LoadError, load
from retouch_server.models import Model
from tests.server.conftest import Load
from tests.server.test_equality import EDITS, drain

# Each a token, so that a cut changes none before it.
WORDS = " ".join("thequickbrownfoxjumpsoverthelazydog" * 40)
FIXED = ("instruct", "xl", "xl-instruct", "kontext", "chroma", "sd3")
TEMPLATED = ("klein", "klein-distilled", "klein-kv", "flux2", "qwen", "z-image", "z-omni")


@pytest.mark.parametrize("name", [*FIXED, *TEMPLATED])
def test_what_is_cut_off_makes_no_difference_and_what_is_read_does(
    tiny_model: Load, name: str
) -> None:
    model = tiny_model(name)
    read = prompts.read(WORDS, model.readers)
    assert WORDS.startswith(read)
    assert 0 < len(read) < len(WORDS)
    last = len(read.rstrip()) - 1
    other = f"{read[:last]}{'a' if read[last] != 'a' else 'b'}{WORDS[last + 1 :]}"
    whole, cut, changed = edited(model, WORDS, read, other)
    assert torch.equal(whole, cut)
    assert not torch.equal(whole, changed)


def edited(model: Model, *asked: str) -> list[Tensor]:
    results = []
    for prompt in asked:
        edit, engine = (
            Edit(model.run(replace(EDITS[0], prompt=prompt, steps=2))),
            Engine(model.denoiser),
        )
        engine.submit([edit])
        drain(engine, [edit])
        results.append(edit.future.result())
    return results


@pytest.mark.parametrize("name", ["klein", "qwen", "z-image"])
def test_a_letter_of_which_some_bytes_are_cut_off_is_not_read(tiny_model: Load, name: str) -> None:
    """Bytes are the tiny tokenizers' tokens: of four letters in a row, the end of the moon is cut off thrice."""
    model = tiny_model(name)
    room = len(prompts.read(WORDS, model.readers))
    read = [len(prompts.read("a" * (room - i) + "🌙" * 9, model.readers)) for i in range(5)]
    assert read == [room, room - 1, room - 2, room - 3, room - 3]


@pytest.mark.parametrize("prompt", ["", "sepia", "Make it NIGHT, café 日本 🌙"])
def test_short_prompts_are_read_whole(prompt: str) -> None:
    readers = load(POCKET, "cpu").readers
    assert len(readers) == 1
    assert prompts.read(prompt, readers) == prompt


@pytest.mark.parametrize("name", TEMPLATED)
def test_conversations_are_no_part_of_what_is_read(tiny_model: Load, name: str) -> None:
    for prompt in ("", "sepia", "Make it NIGHT, café 日本 🌙", "<|im_end|> {} {prompt}"):
        assert prompts.read(prompt, tiny_model(name).readers) == prompt


@pytest.mark.parametrize("name", ["qwen-edit", "qwen-plus", "longcat"])
def test_encoders_that_see_the_images_too_read_all(tiny_model: Load, name: str) -> None:
    assert prompts.read(WORDS, tiny_model(name).readers) == WORDS


def test_tokens_are_counted_as_longcats_pipeline_does(tiny_model: Load) -> None:
    """Bytes; of two contractions, one comes back twice in the other's place."""
    readers = tiny_model("longcat").readers
    for prompt, tokens in (("", 0), ("it's", 4), ("write 'é'", 10), ("it's it's", 9)):
        assert prompts.tokens(prompt, readers) == tokens
    assert prompts.tokens("it's he's", readers) == 4 + 1 + 8


def test_a_tokenizer_without_a_template_for_its_conversation(tiny_model: Load) -> None:
    pipe = tiny_model("klein").pipelines["Flux2KleinPipeline"]
    own, pipe.tokenizer.chat_template = pipe.tokenizer.chat_template, None
    try:
        with pytest.raises(LoadError, match="chat template fails: Cannot use chat template"):
            prompts.readers(pipe, 512)
    finally:
        pipe.tokenizer.chat_template = own
