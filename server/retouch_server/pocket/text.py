"""The text side of `pocket`: learns to read from an instruction how much of each edit it asks for.

The places of words are given (`words.py`) and stay; what is learned is to read sentences of them.
"""

import random
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from retouch_server.pocket import phrases
from retouch_server.pocket.edits import NAMES
from retouch_server.pocket.modules import Instruction
from retouch_server.pocket.words import LENGTH, WIDTH

BATCH = 128
PEAK_RATE = 1.5e-3
NEARBY = (
    0.25  # how far a word is moved in training, of its length: its neighbours mean nearly the same
)
Log = Callable[[str], None]


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


def place(encoder: CLIPTextModel, places: Tensor) -> None:
    """Gives the words their places, [tokens, WIDTH], which training leaves as they are."""
    table = encoder.get_input_embeddings()
    table.weight.data.copy_(places)
    table.weight.requires_grad_(False)


def encode(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, texts: list[str], full: bool = True
) -> Tensor:
    """[B, 48, 128], just as the pipeline does it: padded to the full length, no mask; else to the longest."""
    padding = "max_length" if full else "longest"
    tokens = tokenizer(
        texts, padding=padding, max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    hidden: Tensor = encoder(tokens.input_ids)[0]
    return hidden


def instruct(rng: random.Random, strange: Sequence[str]) -> phrases.Phrase:
    """Mostly edits that go together; a quarter asks for nothing that it could do."""
    if rng.random() < 0.04:
        return phrases.Phrase("")
    edits = [] if rng.random() < 0.25 else phrases.together(rng)
    return phrases.draw(edits, rng, strange)


def target(batch: list[phrases.Phrase]) -> Tensor:
    """Amounts [B, edits]."""
    return torch.tensor([[p.amounts.get(name, 0.0) for name in NAMES] for p in batch])


def loss_of(logits: Tensor, amounts: Tensor, wanted: Tensor) -> Tensor:
    """Of [B, edits] each: whether it is asked for, and where it is, how much of it."""
    asked = (wanted > 0).float()
    presence = functional.binary_cross_entropy_with_logits(logits, asked * 0.98 + 0.005)
    degree = (functional.smooth_l1_loss(amounts, wanted, reduction="none") * asked).sum()
    return 20 * presence + 2 * degree / asked.sum().clamp(min=1)


def train(
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    instruction: Instruction,
    strange: Sequence[str],
    minutes: float,
    log: Log,
    seed: int = 0,
) -> None:
    """Fresh phrases for so many minutes; `strange` are words that mean nothing to any edit."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for m in (encoder, instruction) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, weight_decay=0.02)
    moving = encoder.get_input_embeddings().register_forward_hook(_nearby(generator))
    pool: list[list[phrases.Phrase]] = []
    start, step, right = time.monotonic(), 0, 0.0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * (min(1, (step + 1) / 100) * (1 - progress) + 0.005)
        # Texts of like lengths together, little padded, are three times as fast; the end is as it will be used.
        if not pool:
            drawn = sorted(
                (instruct(rng, strange) for _ in range(6 * BATCH)), key=lambda p: len(p.text)
            )
            pool = [drawn[i : i + BATCH] for i in range(0, len(drawn), BATCH)]
            rng.shuffle(pool)
        batch, full = pool.pop(), progress > 0.8 or step % 8 == 0
        hidden = encode(tokenizer, encoder, [p.text for p in batch], full)
        logits, amounts = instruction.read(hidden)
        wanted = target(batch)
        loss = loss_of(logits, amounts, wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        correct = ((logits > 0) == (wanted > 0)).all(1).float().mean().item()
        right += 0.02 * (correct - right)
        step += 1
        if step % 100 == 0:
            log(f"text step {step} loss {loss.item():.3f} right {right:.3f}")
    moving.remove()


def _nearby(
    generator: torch.Generator,
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def move(_module: nn.Module, _ids: tuple[Tensor, ...], places: Tensor) -> Tensor:
        noise = torch.randn(places.shape, generator=generator) * places.shape[-1] ** -0.5
        moved: Tensor = places + NEARBY * noise
        return moved

    return move
