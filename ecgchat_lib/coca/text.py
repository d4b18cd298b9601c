"""The text side: the frozen report encoder (MiniLM, mean pooled) and the caption decoder's small tokenizer.

The report encoder is never trained here, so each text is encoded once and remembered. The tokenizer is BERT's WordPiece
with the pieces that ECG reports need, some hundreds instead of 30,522. Taught in: 06 §2 and §4.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from ecgchat_lib.coca.numbers import numbers_of
from ecgchat_lib.errors import ParameterError
from ecgchat_lib.models import resolve

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"  # ids 0, 1, 2, 3
SPECIAL = (PAD, UNKNOWN, START, END)
PAD_ID, START_ID, END_ID = 0, 2, 3
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
PUNCTUATION = ".,;:/-()%+'"


def mean_pool(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of the token states (B, L, width) over the tokens with mask (B, L) = 1: (B, width)."""
    weights = mask.unsqueeze(-1).to(states)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


class TextBatch(NamedTuple):
    """B texts as the text tower reads them.

    Attributes:
        states: (B, L, width), the frozen report encoder's state of each word piece; zeros where there is none.
        mask: (B, L), 1 where there is a piece. A text without words has no piece at all.
        numbers: (B, 8), the measured numbers of the text's ending, ms and mV (`numbers.NUMBERS`); NaN where absent.
    """

    states: torch.Tensor
    mask: torch.Tensor
    numbers: torch.Tensor

    def without_numbers(self) -> TextBatch:
        """Return the words alone."""
        return self._replace(numbers=torch.full_like(self.numbers, torch.nan))

    def without_words(self) -> TextBatch:
        """Return the numbers alone."""
        return self._replace(mask=torch.zeros_like(self.mask))


def text_batch(states: Sequence[torch.Tensor], numbers: torch.Tensor) -> TextBatch:
    """Pad the states (each (L, width)) of several texts to one length, and join their numbers (B, 8)."""
    longest = max((len(one) for one in states), default=0)
    width = states[0].shape[1] if states else 0
    padded = torch.zeros(len(states), longest, width)
    mask = torch.zeros(len(states), longest)
    for row, one in enumerate(states):
        padded[row, : len(one)] = one
        mask[row, : len(one)] = 1
    return TextBatch(padded, mask, numbers)


class ReportEncoder:
    """all-MiniLM-L6-v2, frozen: text → the states of its pieces. Loaded at the first text, and each text only once.

    The states are kept in half precision; `encoder(texts)` gives their means, scaled to length 1.

    Args:
        part: the name of the pretrained part, for `models.resolve`.
        pieces: longest text in word pieces; the rest is cut off.
        cache: a `.npz` file in which the states are kept between runs; None to keep them in memory only.
    """

    width = 384

    def __init__(self, part: str = "report-encoder", pieces: int = 96, cache: Path | None = None) -> None:
        self.part, self.pieces, self.cache = part, pieces, cache
        self._known: dict[str, torch.Tensor] = {}  # lower-cased text → (L, 384), float16
        if cache is not None and cache.is_file():
            with np.load(cache) as kept:
                if str(kept["made_by"]) == f"{part} {pieces}":
                    parts = torch.from_numpy(kept["states"]).split(kept["lengths"].tolist())
                    self._known = dict(zip(kept["texts"].tolist(), parts, strict=True))
        self._model: torch.nn.Module | None = None
        self._tokenizer: Tokenizer | None = None

    def _load(self) -> tuple[torch.nn.Module, Tokenizer]:
        """Load the model and its tokenizer from the local folder (MissingPartError if it isn't installed)."""
        if self._model is None or self._tokenizer is None:
            from safetensors.torch import load_file
            from tokenizers import Tokenizer
            from transformers import BertConfig, BertModel

            folder = resolve(self.part)
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.enable_truncation(self.pieces)
            tokenizer.enable_padding()
            model = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
            weights = load_file(folder / "model.safetensors")
            wanted = model.state_dict().keys()  # the file also holds BERT's own pooler, which mean pooling replaces
            model.load_state_dict({name: value for name, value in weights.items() if name in wanted})
            self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer
        return self._model, self._tokenizer

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> list[torch.Tensor]:
        model, tokenizer = self._load()
        batch = tokenizer.encode_batch(list(texts))
        ids = torch.tensor([line.ids for line in batch])
        mask = torch.tensor([line.attention_mask for line in batch])
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state.half()  # (B, L, 384)
        return [row[: int(length)].clone() for row, length in zip(states, mask.sum(dim=1), strict=True)]

    def states(self, texts: Sequence[str], *, batch: int = 64) -> list[torch.Tensor]:
        """Return the state of each word piece of each text: float16 (L, 384). Upper and lower case are the same.

        Raises:
            MissingPartError: the encoder's package isn't installed.
            ParameterError: a text is empty.
        """
        lowered = [" ".join(text.lower().split()) for text in texts]
        if not all(lowered):
            raise ParameterError(f"text number {lowered.index('')} of {len(lowered)} is empty: nothing to encode")
        new = sorted({text for text in lowered if text not in self._known}, key=lambda text: (len(text), text))
        for start in range(0, len(new), batch):  # texts of like length together, little padding
            part = new[start : start + batch]
            self._known.update(zip(part, self._encode(part), strict=True))
        if new and self.cache is not None:
            self._write_cache(self.cache)
        return [self._known[text] for text in lowered]

    def forget(self) -> None:
        """Drop the states that are kept in memory; about 25 kB a text. A file of them stays."""
        self._known.clear()

    def read(self, texts: Sequence[str]) -> TextBatch:
        """Return texts as the text tower reads them; a text of numbers alone has no words.

        Raises:
            MissingPartError, ParameterError: as `states`.
        """
        words, numbers = numbers_of(texts)
        empty = torch.zeros(0, self.width, dtype=torch.float16)
        bare = [not word.strip() and bool(row.isfinite().any()) for word, row in zip(words, numbers, strict=True)]
        states = iter(self.states([word for word, none in zip(words, bare, strict=True) if not none]))
        return text_batch([empty if none else next(states) for none in bare], numbers)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the vectors (n, 384) of texts, each the mean of its states, of length 1; numbers are words here.

        Raises:
            MissingPartError, ParameterError: as `states`.
        """
        means = [states.float().mean(dim=0) for states in self.states(texts)]
        return functional.normalize(torch.stack(means), dim=-1) if means else torch.zeros(0, self.width)

    def _write_cache(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        with temporary.open("wb") as file:
            np.savez(
                file,
                texts=np.array(list(self._known)),
                states=torch.cat(list(self._known.values())).numpy(),
                lengths=np.array([len(states) for states in self._known.values()]),
                made_by=f"{self.part} {self.pieces}",
            )
        os.replace(temporary, path)


def build_vocabulary(texts: Iterable[str], part: str = "report-encoder") -> tuple[str, ...]:
    """Return the report encoder's word pieces that occur in `texts`, with the special ones and the alphabet in front.

    With the alphabet (at a word's start and inside it), any text can be spelled, only in more pieces.
    """
    from tokenizers import Tokenizer

    full = Tokenizer.from_file(str(resolve(part) / "tokenizer.json"))
    full.no_truncation()
    full.no_padding()
    alphabet = [*ALPHABET, *(f"##{letter}" for letter in ALPHABET), *PUNCTUATION]
    found = {piece for line in full.encode_batch(list(texts), add_special_tokens=False) for piece in line.tokens}
    return tuple(dict.fromkeys([*SPECIAL, *alphabet, *sorted(found - set(SPECIAL))]))


class CaptionTokenizer:
    """WordPiece, lower-cased, over a given vocabulary: text ↔ ids for the caption decoder.

    Args:
        vocabulary: the pieces in the order of their ids; the four special ones first.

    Raises:
        ParameterError: the special pieces are not in front, or a piece occurs twice.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

        if tuple(vocabulary[:4]) != SPECIAL or len(set(vocabulary)) != len(vocabulary):
            raise ParameterError(f"a caption vocabulary starts with {', '.join(SPECIAL)} and holds each piece once")
        self.vocabulary = tuple(vocabulary)
        ids = {piece: number for number, piece in enumerate(self.vocabulary)}
        self._tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, texts: Sequence[str], length: int) -> torch.Tensor:
        """Return ids (n, length): start, pieces, end, padding. A longer text is cut and has no end piece."""
        ids = torch.full((len(texts), length), PAD_ID)
        for row, line in enumerate(self._tokenizer.encode_batch(list(texts))):
            pieces = [START_ID, *line.ids, END_ID][:length]
            ids[row, : len(pieces)] = torch.tensor(pieces)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids up to the end piece, the special pieces left out."""
        pieces = [int(number) for number in ids]
        if END_ID in pieces:
            pieces = pieces[: pieces.index(END_ID)]
        return self._tokenizer.decode([number for number in pieces if number >= len(SPECIAL)])
