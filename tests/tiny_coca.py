"""A tiny model with pairs, for the tests of the training loop; also for the processes that they start and kill."""

from __future__ import annotations

from dataclasses import replace

import torch
from test_coca_model import TINY, tiny_model

from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.objective import Objective
from ecgchat_lib.coca.pairs import Batch, PairedEcgs
from ecgchat_lib.coca.train import TrainConfig

CONFIG_SMALL = TrainConfig(steps=8, batch=4, learning_rate=3e-3, warmup=2, evaluate_every=4, save_every=3, average=0.9)
EVERYTHING = Objective(contrastive=0.7, caption=2.0, numbers=0.5, statements=0.3, share_targets=True)


class HashedTexts:
    """Stands in for the report encoder where only the loop is tested: fixed random states per text."""

    width = TINY.text_width

    def states(self, texts):
        seeds = [sum(map(ord, text)) for text in texts]
        return [
            torch.randn(3 + seed % 3, self.width, generator=torch.Generator().manual_seed(seed)).half()
            for seed in seeds
        ]


def model_and_pairs(seed: int = 0, dropout: float = 0.0, rich: bool = False) -> tuple[EcgCoca, PairedEcgs]:
    """Twelve records of noise; rich: with all parts of model and objective, and numbers some of which are unknown."""
    encoder = replace(TINY.encoder, patch_dropout=dropout, stem_channels=4 * rich, z_score=not rich, keep_scale=rich)
    config = replace(TINY, encoder=encoder, token_hidden=8 * rich, number_hidden=8 * rich)
    model = tiny_model(seed, config)
    model.report_encoder = HashedTexts()
    generator = torch.Generator().manual_seed(3)
    windows = torch.randn(12, 12, 80, generator=generator)
    # Texts of different lengths, so that a chunk's mean over pieces isn't the batch's.
    texts = [[f"w{k} w{k + 1}" + " w5" * (k % 4), f"w{k} w{k + 2} w3"] for k in range(12)]
    if not rich:
        return model, PairedEcgs(windows, texts, model)
    numbers = 100 + 500 * torch.rand(12, 8, generator=generator)
    numbers[torch.rand(12, 8, generator=generator) < 0.4] = torch.nan
    present = torch.rand(12, 3, generator=generator) < 0.4
    phrases = [("w1", "w2 w3"), ("w4",), ("w5 w6",)]
    keys = [k // 2 for k in range(12)]
    return model, PairedEcgs(windows, texts, model, keys, numbers=numbers, phrases=phrases, present=present)


def noisy(batch: Batch, generator: torch.Generator) -> Batch:
    return batch._replace(ecg=batch.ecg + 0.1 * torch.randn(batch.ecg.shape, generator=generator))


def weights(model: EcgCoca) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
