"""How much of a prompt a model reads, held against what its pipeline gives its encoders."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from retouch_server import prompts
from retouch_server.catalog import POCKET
from retouch_server.loading import load
from tests.server.conftest import Load

# Each a token, so that a cut changes none before it.
WORDS = " ".join("thequickbrownfoxjumpsoverthelazydog")


@pytest.mark.parametrize("name", ["instruct", "xl", "kontext", "sd3"])
def test_what_is_cut_off_makes_no_difference_and_what_is_read_does(
    tiny_model: Load, name: str
) -> None:
    model = tiny_model(name)
    read = prompts.read(WORDS, model.readers)
    assert WORDS.startswith(read)
    assert 0 < len(read) < len(WORDS)
    whole, cut, shorter = (embeddings(model, text) for text in (WORDS, read, read[:-2]))
    assert torch.equal(whole, cut)
    assert not torch.equal(whole, shorter)


def embeddings(model: Any, prompt: str) -> Any:
    pipe = model.pipelines[model.family.edit]
    encode = getattr(pipe, "_encode_prompt" if model.entry.id == "instruct" else "encode_prompt")
    options = {"prompt": prompt, "device": "cpu", "num_images_per_prompt": 1}
    if model.entry.id in ("instruct", "xl", "sd3"):
        options["do_classifier_free_guidance"] = False
    if model.entry.id in ("sd3", "kontext"):
        options["max_sequence_length"] = pipe.tokenizer_max_length
    if model.entry.id == "sd3":
        options |= {"prompt_2": None, "prompt_3": None}
    if model.entry.id == "kontext":
        options["prompt_2"] = None
    with torch.inference_mode():
        encoded = encode(**options)
    return encoded[0] if isinstance(encoded, tuple) else encoded


@pytest.mark.parametrize("prompt", ["", "sepia", "Make it NIGHT, café 日本 🌙"])
def test_short_prompts_are_read_whole(tiny_model: Load, prompt: str) -> None:
    readers = load(POCKET, "cpu").readers
    assert len(readers) == 1
    assert prompts.read(prompt, readers) == prompt


def test_encoders_that_hold_conversations_are_not_asked(tiny_model: Load) -> None:
    assert tiny_model("qwen-edit").readers == ()
    assert prompts.read(WORDS, ()) == WORDS
