"""Text encoders and their tokenizers: letters or bytes, no merges."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
BYTES = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def clip(hidden: int, projection: bool = False) -> tuple[Any, CLIPTokenizer]:
    pieces = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(c + "</w>" for c in LETTERS)]
    tokenizer = CLIPTokenizer(
        vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=24
    )
    config = CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=24, projection_dim=hidden, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    cls = CLIPTextModelWithProjection if projection else CLIPTextModel
    return cls(config).eval(), tokenizer


def t5(hidden: int) -> tuple[T5EncoderModel, PreTrainedTokenizerFast]:
    bpe = Tokenizer(models.BPE(vocab={"<pad>": 0, "</s>": 1, "<unk>": 2} | {c: i + 3 for i, c in enumerate(LETTERS)},
                               merges=[], unk_token="<unk>"))  # fmt: skip
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=24,
    )
    config = T5Config(
        vocab_size=64,
        d_model=hidden,
        d_kv=8,
        d_ff=2 * hidden,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.1,
    )
    return T5EncoderModel(config), tokenizer


def qwen_tokenizer() -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer(vocab=BYTES, merges=[], additional_special_tokens=MARKS)
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen3(hidden: int, layers: int) -> tuple[Qwen3ForCausalLM, Qwen2Tokenizer]:
    tokenizer = qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=512,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval(), tokenizer
