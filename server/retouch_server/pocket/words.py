"""Words that `pocket` knows before it is taught: a tokenizer, and a place for each word among the others.

Places are those that a large sentence encoder gives to a word alone, all-MiniLM-L6-v2 (Apache-2.0), reduced to
the width of ours. So "crimson" is near "red" though no instruction in training may have said so.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, BertModel, CLIPTokenizer

from retouch_server.pocket import phrases

LENGTH = 48
WIDTH = 128
START, END = "<|startoftext|>", "<|endoftext|>"
MOST_TOKENS = 24_000
FAR = 0.5  # the cosine below which two words have little to do with each other


def vocabulary(minilm: Path) -> list[str]:
    """The encoder's own words, frequent ones first, after those of the grammar."""
    known = (minilm / "vocab.txt").read_text("utf-8").split("\n")
    own = sorted(word for word in phrases.own_words() if word.isalpha())
    return list(dict.fromkeys([*own, *(word for word in known if re.fullmatch("[a-z]+", word))]))


def build_tokenizer(words: list[str]) -> CLIPTokenizer:
    """CLIP's tokenizer, in which most of `words` are one token; it has every byte: no text is unknown."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = letters + [letter + "</w>" for letter in letters]
    backend = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[]).backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_TOKENS,
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        show_progress=False,
        min_frequency=1,
    )
    # As often as the words of a language are: the n-th most frequent one 1/n of the first.
    texts = (word for i, word in enumerate(words) for _ in range(1 + 20_000 // (i + 200)))
    backend.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    pieces = dict.fromkeys([*alphabet, *("".join(pair) for pair in merges), START, END])
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=LENGTH
    )


def places(tokenizer: CLIPTokenizer, minilm: Path) -> Tensor:
    """[tokens, WIDTH] of length 1, in the order of the tokens' ids."""
    encoder = BertModel.from_pretrained(minilm, add_pooling_layer=False).eval()
    reader = AutoTokenizer.from_pretrained(minilm)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    texts = [tokenizer.convert_tokens_to_string([token]).strip() or token for token in tokens]
    found = []
    with torch.inference_mode():
        for start in range(0, len(texts), 256):
            batch = reader(texts[start : start + 256], padding=True, return_tensors="pt")
            hidden = encoder(**batch).last_hidden_state
            mask = batch.attention_mask[..., None]
            found.append((hidden * mask).sum(1) / mask.sum(1))
    vectors = torch.cat(found)
    centred = vectors - vectors.mean(0)
    _, _, axes = torch.pca_lowrank(centred, WIDTH, center=False, niter=4)
    return torch.nn.functional.normalize(centred @ axes, dim=-1)


def strange(tokenizer: CLIPTokenizer, places: Tensor, known: list[str]) -> list[str]:
    """Those of `known` words that are far from every word of the grammar: they mean nothing to any edit."""
    tokens = tokenizer.get_vocab()

    def ids(words: Iterable[str]) -> list[int]:
        return [tokens[word + "</w>"] for word in words if word + "</w>" in tokens]

    own = phrases.own_words()
    others = [word for word in known if word not in own and len(word) > 2]
    others = [word for word in others if word + "</w>" in tokens]
    nearest = (places[ids(others)] @ places[ids(sorted(own))].T).amax(1)
    return [word for word, near in zip(others, nearest.tolist(), strict=True) if near < FAR]
