"""The text side of `pocket`: a BPE tokenizer made from the grammar, and the encoder's first lesson.

Taught from the picture loss alone, the text path stays the bottleneck for hours. So the encoder
first learns, in minutes, to tell which edit a phrase asks for, and is then kept as it is.
"""

import json
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from retouch_server.pocket import phrases
from retouch_server.pocket.edits import EDITS

LENGTH = 48
WIDTH = 128
START, END = "<|startoftext|>", "<|endoftext|>"
CLASSES = ("", *EDITS)
Log = Callable[[str], None]


def phrase(rng: random.Random, edits: list[str]) -> phrases.Phrase:
    """A tenth empty, a twentieth beyond its reach: both leave the photo as it is."""
    chance = rng.random()
    if chance < 0.10:
        return phrases.Phrase("", "")
    return phrases.draw("" if chance < 0.16 else rng.choice(edits), rng)


def train_tokenizer(size: int = 2000, samples: int = 60_000) -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary from the grammar; it has every byte: no text is unknown."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = letters + [letter + "</w>" for letter in letters]
    backend = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[]).backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=size, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    rng = random.Random(0)
    edits = list(EDITS)
    texts = (phrases.draw(rng.choice(["", *edits]), rng).text for _ in range(samples))
    backend.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    pieces = dict.fromkeys([*alphabet, *("".join(pair) for pair in merges), START, END])
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=LENGTH
    )


def build_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def encode(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, texts: list[str]) -> Tensor:
    """[B, 48, 128], just as the pipeline does it: padded to the full length, no mask."""
    tokens = tokenizer(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    hidden: Tensor = encoder(tokens.input_ids)[0]
    return hidden


def pretrain(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, pooling: Any, minutes: float, log: Log
) -> None:
    """Teaches `encoder` and `pooling` ([B, 48, 128] -> [B, D]) to name the edit and its degree."""
    head = nn.Linear(pooling.proj.out_features, len(CLASSES) + 1)

    def loss_of(pooled: Tensor, batch: list[phrases.Phrase]) -> tuple[Tensor, Tensor]:
        target = torch.tensor([CLASSES.index(p.edit) for p in batch])
        out = head(functional.dropout(pooled, 0.2))
        loss = functional.cross_entropy(out[:, :-1], target, label_smoothing=0.05)
        amount = torch.tensor([p.amount for p in batch])
        return loss + functional.mse_loss(out[:, -1], amount), out[:, :-1].argmax(1) == target

    _teach(tokenizer, encoder, pooling, [head], loss_of, 1e-3, minutes, log)


def refine(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, pooling: Any, minutes: float, log: Log
) -> None:
    """Teaches more wordings when the UNet is trained: every phrase goes where its kind is now.

    Each edit and degree has a place in the pooled space that the UNet knows: the mean of many.
    """
    known = _places(tokenizer, encoder, pooling)
    kinds, places = list(known), torch.stack(list(known.values()))

    def loss_of(pooled: Tensor, batch: list[phrases.Phrase]) -> tuple[Tensor, Tensor]:
        target = torch.tensor([kinds.index((p.edit, p.amount)) for p in batch])
        distances = (pooled[:, None] - places).square().mean(-1)
        loss = functional.cross_entropy(-8 * distances, target)
        right = distances.argmin(1) == target
        return loss + distances.gather(1, target[:, None]).mean(), right

    _teach(tokenizer, encoder, pooling, [], loss_of, 5e-4, minutes, log)


def _places(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, pooling: Any
) -> dict[tuple[str, float], Tensor]:
    """(edit, degree) -> [D], where phrases of that kind are now, on average."""
    rng = random.Random(2)
    texts: dict[tuple[str, float], list[str]] = {}
    for edit in CLASSES:
        for drawn in (phrases.draw(edit, rng) for _ in range(600)):
            texts.setdefault((edit, drawn.amount), []).append(drawn.text)
    with torch.no_grad():
        return {
            kind: pooling(encode(tokenizer, encoder, group[:200])).mean(0)
            for kind, group in texts.items()
        }


def _teach(
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    pooling: Any,
    heads: list[nn.Module],
    loss_of: Callable[[Tensor, list[phrases.Phrase]], tuple[Tensor, Tensor]],
    rate: float,
    minutes: float,
    log: Log,
) -> None:
    """Fresh phrases for so many minutes. `loss_of`: pooled [B, D], phrases -> loss, right ones [B]."""
    rng = random.Random(1)
    parameters = [p for module in (encoder, pooling, *heads) for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02)
    start, step, right = time.monotonic(), 0, 0.0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * (min(1, (step + 1) / 100) * (1 - progress) + 0.01)
        batch = [phrase(rng, list(EDITS)) for _ in range(96)]
        _set_dropout(tokenizer, 0.1)
        hidden = encode(tokenizer, encoder, [p.text for p in batch])
        _set_dropout(tokenizer, None)
        loss, correct = loss_of(pooling(hidden), batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        right += 0.02 * (correct.float().mean().item() - right)
        step += 1
        if step % 100 == 0:
            log(f"text step {step} loss {loss.item():.3f} right {right:.3f}")


def _set_dropout(tokenizer: CLIPTokenizer, rate: float | None) -> None:
    """BPE dropout: splits words at random, so that unseen forms of a word surprise less."""
    model = tokenizer.backend_tokenizer.model
    model.dropout = rate
    tokenizer.backend_tokenizer.model = model
