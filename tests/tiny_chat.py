"""A tiny random Llama with a real tokenizer, for tests of the chat room: two layers, made in a moment."""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.template import get_template

WIDTH, HIDDEN, ECG_TOKENS = 24, 32, 7

CORPUS = [
    "This is sinus rhythm, at 72 beats per minute. Yes, I see atrial fibrillation here. What is the heart rate?",
    "Measured: rate 72, RR 829 ± 30 regular, PR 160, QRS 90, QT 380, QTc 417, axis -30. You read 12-lead ECGs.",
    "A chat between a curious user and an artificial intelligence assistant. USER: ASSISTANT: user system",
]


@cache
def tiny_tokenizer():
    """Byte-level BPE like SmolLM2's, trained on three sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )


def tiny_llama(seed=0, hidden=HIDDEN, layers=2):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tiny_tokenizer()),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=3,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def tiny_chat(seed=0, template="smollm2"):
    torch.manual_seed(seed + 1)
    projector = Projector(WIDTH, HIDDEN)
    return EcgChat(tiny_llama(seed), tiny_tokenizer(), projector, get_template(template)).eval()


def random_ecg(n, seed=0):
    return torch.randn(n, ECG_TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
