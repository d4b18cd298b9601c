"""Spelling: before stage 1, the projector learns to write what an ECG shows, in the word embeddings it will be read in.

Each finding owns a few of the places where the ECG's tokens stand. Where the finding is present, these places should
hold the embeddings of its words, as if they had been typed into the prompt; where it is absent, of a filler. The
language model isn't run for it, so a step is cheap. In stage 2 the model first reads words that are spelled right and
then, finding by finding, the projector's own. A small model soon learns to look up words; an earlier mini, trained for
240 steps without spelling, answered the same whichever ECG's tokens it was given. Taught in: 11 §4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.errors import ParameterError

FILLER = ","
RATE_DIGITS = 3
RATE_WEIGHT = 3.0


@dataclass(frozen=True)
class Spelling:
    """Which word stands at which ECG token.

    The first token (CLS) stays free; the findings' words follow one after the other, then the heart rate's digits.

    Attributes:
        present: (findings, places) the word at each place of a finding, -1 where the place isn't the finding's.
        filler: the word at the places of an absent finding.
        digits: the words for 0 to 9.
        rate_places: places of the rate's hundreds, tens and units.
    """

    present: torch.Tensor
    filler: int
    digits: tuple[int, ...]
    rate_places: tuple[int, ...]

    @classmethod
    def of(cls, phrases: Sequence[str], tokenizer: Any, places: int) -> Spelling:
        """Lay out the findings' phrases over ECG tokens.

        Args:
            phrases: one for each finding.
            tokenizer: the language model's.
            places: ECG tokens of a recording, CLS included. Where a tokenizer cuts words into so many pieces that not
                all phrases fit, the longest ones lose their last pieces.

        Raises:
            ParameterError: there are fewer places than findings, or two digits end in the same token.
        """
        words = [tokenizer(" " + phrase, add_special_tokens=False).input_ids for phrase in phrases]
        (filler,) = tokenizer(FILLER, add_special_tokens=False).input_ids[-1:]
        digits = [tokenizer(str(digit), add_special_tokens=False).input_ids[-1] for digit in range(10)]
        if len(set(digits)) != 10:
            raise ParameterError("spelling: this tokenizer has no word for each digit, expected ten different ones")
        room = places - 1 - RATE_DIGITS
        if room < len(words):
            raise ParameterError(
                f"spelling: {len(phrases)} findings and the rate need {places - room + len(words)} places or more, but "
                f"an ECG has {places} tokens. Spell fewer findings"
            )
        longest = max(map(len, words), default=0)
        while sum(min(longest, len(ids)) for ids in words) > room:
            longest -= 1
        words = [ids[:longest] for ids in words]
        present = torch.full((len(phrases), places), -1)
        place = 1
        for finding, ids in enumerate(words):
            present[finding, place : place + len(ids)] = torch.tensor(ids)
            place += len(ids)
        return cls(present, filler, tuple(digits), tuple(range(place, place + RATE_DIGITS)))

    @property
    def places(self) -> int:
        """ECG tokens of a recording."""
        return int(self.present.shape[1])

    def words(self, findings: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
        """Return the right word at each place (n, places); -1 where nothing is known or the place is free.

        Args:
            findings: (n, findings) 1 present, 0 absent, NaN unsaid.
            rates: (n,) beats per minute, NaN if unknown.

        Raises:
            ParameterError: there is another number of findings than was laid out.
        """
        if findings.shape != (len(rates), len(self.present)):
            raise ParameterError(
                f"spelling: findings of shape {tuple(findings.shape)}, expected ({len(rates)}, {len(self.present)})"
            )
        out = torch.full((len(findings), self.places), -1)
        for number, words in enumerate(self.present):
            own = words >= 0
            there, absent = findings[:, number] == 1, findings[:, number] == 0
            out[there[:, None] & own] = words[own].repeat(int(there.sum()))
            out[absent[:, None] & own] = self.filler
        known = rates.isfinite()
        left = rates.nan_to_num(0).round().long().clamp(0, 999)
        digits = torch.tensor(self.digits)
        for place in reversed(self.rate_places):
            out[known, place] = digits[left[known] % 10]
            left = left // 10
        return out

    def shown(self, words: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return `words`, but -1 at all places of the findings, and of the rate, that `right` doesn't name.

        Args:
            words: (n, places).
            right: (n, findings + 1) bool, the rate last.
        """
        owner = self.owners()
        return torch.where((owner >= 0) & right[:, owner.clamp_min(0)], words, -1)

    def owners(self) -> torch.Tensor:
        """Return for each place the number of its finding, the number of findings for the rate, -1 if free."""
        owner = torch.where((self.present >= 0).any(0), (self.present >= 0).int().argmax(0), -1)
        owner[list(self.rate_places)] = len(self.present)
        return owner


def place_weights(
    words: torch.Tensor, spelling: Spelling, chances: torch.Tensor, *, most: float = 10.0
) -> torch.Tensor:
    """Return how much each place of each recording counts (n, places), so that a finding's two sides count the same.

    Args:
        words: the right words (n, places), from `Spelling.words`.
        spelling: the layout.
        chances: (n,) how likely each recording is drawn.
        most: largest weight: a finding that three recordings have shouldn't be learned by heart.
    """
    weights = (words >= 0).float()
    for ids in spelling.present:
        own = ids >= 0
        place = int(own.int().argmax())
        said = words[:, place] >= 0
        there = said & (words[:, place] != spelling.filler)
        for side in (there, said & ~there):
            share = float(chances[side].sum() / chances[said].sum().clamp_min(1e-12))
            weights[side[:, None] & own] = min(most, 0.5 / share) if share else 0.0
    weights[:, list(spelling.rate_places)] *= RATE_WEIGHT
    return weights


def train_spelling(
    projector: Projector,
    embeddings: torch.Tensor,
    ecg: torch.Tensor,
    words: torch.Tensor,
    spelling: Spelling,
    *,
    steps: int = 1000,
    batch: int = 64,
    places: int = 24,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.05,
    noise: float = 0.0,
    chances: torch.Tensor | None = None,
    seed: int = 0,
) -> list[float]:
    """Teach a projector to spell: least squares between its vectors and the right words' embeddings.

    The vector that least squares makes of an uncertain finding lies between the words and the filler, by how likely the
    finding is, which is what the language model should get to know.

    Args:
        projector: changed in place.
        embeddings: the language model's word embeddings (vocabulary, hidden).
        ecg: (n, places, width) from the encoder.
        words: (n, places) the right words, from `Spelling.words`.
        spelling: the layout.
        steps: optimizer steps.
        batch: recordings per step.
        places: how many of the findings' places are drawn in a step.
        learning_rate: highest learning rate; it falls to 0 over half a cosine.
        weight_decay: of AdamW.
        noise: standard deviation of what is added to the tokens, in parts of each channel's own.
        chances: (n,) how likely each recording is drawn; all alike if None.
        seed: order of the recordings, and the noise.

    Returns:
        The loss of each step, in parts of what the embeddings' mean would leave.

    Raises:
        ParameterError: the shapes don't fit each other.
    """
    if words.shape != ecg.shape[:2] or words.shape[1] != spelling.places:
        raise ParameterError(f"spelling: words of shape {tuple(words.shape)}, expected {tuple(ecg.shape[:2])}")
    device = projector.up.weight.device
    chances = torch.ones(len(ecg)) if chances is None else chances
    weights = place_weights(words, spelling, chances)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=learning_rate, weight_decay=weight_decay)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    used = embeddings.detach().float()[sorted(set(words[words >= 0].tolist()))]
    scale = float((used - used.mean(0)).square().mean())
    spread = ecg.std(dim=(0, 1))
    words_of = torch.nonzero((spelling.present >= 0).any(0))[:, 0]
    digits_of = torch.tensor(spelling.rate_places)  # in every step: digits are harder than presence
    losses = []
    for _ in range(steps):
        rows = torch.multinomial(chances, batch, replacement=True, generator=generator)
        drawn = torch.cat([words_of[torch.randperm(len(words_of), generator=generator)[:places]], digits_of])
        tokens = ecg[rows].float()
        if noise:
            tokens = tokens + noise * spread * torch.randn(tokens.shape, generator=generator)
        vectors = projector(tokens.to(device), drawn)
        right = words[rows][:, drawn]
        wanted = embeddings.detach()[right.clamp_min(0).to(device)].float()
        weight = weights[rows][:, drawn].to(device)
        errors = weight * (vectors - wanted).square().mean(-1)
        loss = errors.sum() / weight.sum().clamp_min(1e-6) / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def presence_scores(
    projector: Projector, embeddings: torch.Tensor, ecg: torch.Tensor, spelling: Spelling
) -> torch.Tensor:
    """Return how far each finding's places lie from the filler towards its words (n, findings): about 0 to 1."""
    device = projector.up.weight.device
    table = embeddings.detach().float()
    scores = []
    for part in ecg.split(64):
        vectors = projector(part.to(device).float())
        columns = []
        for ids in spelling.present:
            own = (ids >= 0).to(device)
            way = table[ids[ids >= 0].to(device)] - table[spelling.filler]  # (own places, hidden)
            from_filler = vectors[:, own] - table[spelling.filler]
            columns.append((from_filler * way).sum((1, 2)) / way.square().sum())
        scores.append(torch.stack(columns, dim=1).cpu())
    return torch.cat(scores)


@torch.no_grad()
def spelled_rates(
    projector: Projector, embeddings: torch.Tensor, ecg: torch.Tensor, spelling: Spelling
) -> torch.Tensor:
    """Return the heart rates (n,) that are spelled: at each place the digit whose embedding is nearest."""
    device = projector.up.weight.device
    digits = embeddings.detach().float()[list(spelling.digits)]
    rates = []
    for part in ecg.split(64):
        vectors = projector(part.to(device).float())[:, list(spelling.rate_places)]
        nearest = torch.cdist(vectors, digits.expand(len(vectors), -1, -1)).argmin(-1).cpu()
        rates.append(nearest @ torch.tensor([100, 10, 1]))
    return torch.cat(rates).float()


class Reading(nn.Module):
    """A projector in stage 2: some places show the right word, the others what the projector spells.

    It stands in for `EcgChat.projector`; each ECG token has one more channel, with the number of the word to show, or
    -1 (`with_words` puts it there).

    Args:
        projector: the projector that is trained.
        embeddings: the language model's word embeddings (vocabulary, hidden), not trained.

    Raises:
        ParameterError: the projector isn't in float32, so the words' numbers would be rounded on their way here.
    """

    def __init__(self, projector: Projector, embeddings: torch.Tensor) -> None:
        super().__init__()
        if projector.up.weight.dtype != torch.float32:
            raise ParameterError(f"reading: the projector is in {projector.up.weight.dtype}, expected torch.float32")
        self.projector = projector
        self.width, self.hidden = projector.width + 1, projector.hidden
        self._embeddings = [embeddings.detach()]  # in a list: not a weight of this module

    @property
    def up(self) -> nn.Linear:
        """The projector's first layer, whose number type the ECG tokens take."""
        return self.projector.up

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project tokens (batch, places, width + 1) to (batch, places, hidden)."""
        words = tokens[..., -1].long()
        spelled = self.projector(tokens[..., :-1])
        right = self._embeddings[0][words.clamp_min(0)].to(spelled)
        return torch.where(words[..., None] >= 0, right, spelled)


def with_words(tokens: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Put the numbers of words (n, places) beside ECG tokens (n, places, width), as one more channel."""
    return torch.cat([tokens, words[..., None].to(tokens)], dim=-1)
