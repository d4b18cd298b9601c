"""What each choice of the mini ECG-CoCa is worth: one short training per choice, alike but for that choice.

    ECGCHAT_REAL_DATA=FOLDER python benchmarks/coca_ablations.py --work FOLDER

Everything is the recipe of the shipped weights (`ecgchat_lib.evaluate.mini_recipe`) with fewer steps; a run takes the
step with the best value on the choosing half of fold 9, and is reported on the other half. One seed each: differences
inside the intervals mean nothing.

    both            the recipe: real and synthetic ECGs, numbers read, a causal caption decoder
    real            without synthetic ECGs
    synthetic       without real ones
    no_numbers      reports without measured numbers in training, no number encoder
    no_statements   without the loss over single statements
    one_hot         one-hot contrastive targets: equal reports push each other away
    leak            the original's caption path: the decoder reads the states of a bidirectional text encoder
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from ecgchat_lib.coca.checkpoint import MANIFEST, WEIGHTS
from ecgchat_lib.coca.embed import embed_windows
from ecgchat_lib.coca.losses import caption_loss
from ecgchat_lib.coca.model import CocaOutput, EcgCoca
from ecgchat_lib.coca.text import TextBatch
from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.evaluate.mini_recipe import (
    TRAIN,
    Material,
    RecipeConfig,
    prepare,
    train,
    wde_figures,
    zero_shot_figures,
)
from ecgchat_lib.evaluate.probe import Parts, probe_fractions
from ecgchat_lib.paths import data_folder, project_root


class LeakyCoca(EcgCoca):
    """The mini with the original's caption path: its decoder reads a bidirectional encoder's states, not pieces.

    The caption's pieces are the report encoder's own, so state t belongs to piece t; but it has seen all that follow.
    """

    def __init__(self, like: EcgCoca) -> None:
        assert like.tokenizer is not None
        super().__init__(like.config, like.tokenizer.vocabulary, like.report_encoder)
        self.load_state_dict(like.state_dict())
        self.states_projection = nn.Linear(like.config.text_width, like.config.encoder.width)

    def leaky_logits(self, states: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Return logits (B, L, vocabulary) from the report encoder's states (B, L, 384)."""
        decoder = self.decoder
        places = decoder.positional_embedding[: states.shape[1]]
        return decoder.transformer(patches, self.states_projection(states) + places)

    def forward(self, ecg: torch.Tensor, text: TextBatch, pieces: torch.Tensor) -> CocaOutput:
        """As `EcgCoca.forward`, but for the caption's logits."""
        encoded = self.encoder(ecg)
        length = pieces.shape[1] - 1
        states = functional.pad(text.states.float(), (0, 0, 0, max(0, length - text.states.shape[1])))[:, :length]
        return CocaOutput(
            tokens=encoded.tokens,
            ecg=functional.normalize(encoded.embedding, dim=-1),
            forms=functional.normalize(self.text_tower.forms(text), dim=-1),
            logits=self.leaky_logits(states, self.caption_patches(encoded.tokens)),
            labels=pieces[:, 1:],
            scale=self.logit_scale.exp(),
        )


def variants(base: RecipeConfig) -> dict[str, RecipeConfig]:
    """Return the recipe of each variant."""
    model, settings = base.model, base.train
    without = {
        name: replace(settings, objective=replace(settings.objective, **{name: 0.0}))
        for name in ("numbers", "statements")
    }
    one_hot = replace(settings, objective=replace(settings.objective, share_targets=False))
    return {
        "both": base,
        "real": replace(base, synthetic=0),
        "synthetic": replace(base, real=False),
        "no_numbers": replace(base, model=replace(model, number_hidden=0), train=without["numbers"]),
        "no_statements": replace(base, train=without["statements"]),
        "one_hot": replace(base, train=one_hot),
        "leak": base,
    }


@torch.inference_mode()
def caption_with_swapped_ecgs(model: EcgCoca, material: Material) -> dict[str, float]:
    """Return the caption loss on the reporting half with each record's own ECG, and with another's."""
    rows = material.report
    reports = [material.manifest["report"].iloc[row] for row in rows]
    assert model.tokenizer is not None
    pieces = model.tokenizer.encode(reports, model.config.decoder.context + 1)
    text = model.read_texts(reports)
    windows, losses = material.windows[rows].float(), {}
    for name, ecg in {"own": windows, "other": windows.roll(1, dims=0)}.items():
        out = model.eval()(ecg, text, pieces)
        losses[name] = caption_loss(out.logits, out.labels).item()
    return losses


def probe_area(ecg: np.ndarray, material: Material, seed: int) -> dict[str, float]:
    """Return the linear probe's macro-AUC with all labels of the real folds 1–8, from all records' embeddings."""
    rows = Parts(np.flatnonzero(material.manifest["split"] == "train"), material.choose, material.report)
    features = {"mini": Parts(*(ecg[part] for part in rows))}
    labels = Parts(*(material.labels[part] for part in rows))
    found = probe_fractions(features, labels, fractions=[1.0], groups=material.patients(material.report), seed=seed)
    return found["mini"]["1"]["interval"]


def run(name: str, recipe: RecipeConfig, data: Path, out: Path) -> dict[str, Any]:
    """Train one variant, take its best step, and return its figures on the reporting half."""
    for kept in ("real.npz", "synthetic.npz", "report-states.npz"):  # the variants read the same records
        if (out / kept).is_file() and not (out / name / kept).exists():
            (out / name).mkdir(parents=True, exist_ok=True)
            os.link(out / kept, out / name / kept)
    model, material = prepare(data / "ptbxl", recipe, out / name)
    if name == "leak":
        torch.manual_seed(recipe.seed)
        model = LeakyCoca(model)
    _, seconds = train(model, material, recipe, out / name)
    best = {key: value.float() for key, value in load_file(out / name / "best" / WEIGHTS).items()}
    model.load_state_dict(best)
    model.eval()
    ecg = embed_windows(material.windows, model).numpy()
    everyone = np.sort(np.concatenate([material.choose, material.report]))
    return {
        "records": len(material.pairs),
        "step": json.loads((out / name / "best" / MANIFEST).read_text())["about"]["step"],
        "zero_shot_macro_auc": zero_shot_figures(model, ecg, material, "super", recipe.seed)["macro_auc"],
        "probe_macro_auc": probe_area(ecg, material, recipe.seed),
        "retrieval": wde_figures(model, ecg, material, everyone, recipe.seed),
        "caption_loss": caption_with_swapped_ecgs(model, material),
        "seconds": round(seconds),
    }


def main() -> None:
    """Run the variants that have no result yet, and write all results to one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ECGCHAT_REAL_DATA"), help="folder above ptbxl/")
    parser.add_argument("--work", type=Path, required=True, help="folder for states; a killed run goes on from it")
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "coca_ablations.json")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="*", help="names of variants")
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = RecipeConfig(train=replace(TRAIN, steps=given.steps, evaluate_every=50, save_every=50))
    for name, recipe in variants(base).items():
        if given.only and name not in given.only:
            continue
        path = given.work / name / "figures.json"
        if not path.is_file():
            figures = run(name, recipe, given.data, given.work)
            path.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        print(name, json.dumps(json.loads(path.read_text(encoding="utf-8"))["zero_shot_macro_auc"]), flush=True)
    found = {
        name: json.loads((given.work / name / "figures.json").read_text(encoding="utf-8"))
        for name in variants(base)
        if (given.work / name / "figures.json").is_file()
    }
    record = {
        "what": "one short training per variant of the mini recipe; PTB-XL fold 9, reporting half",
        "steps": given.steps,
        "batch": TRAIN.batch,
        "seed": base.seed,
        "variants": found,
        "device": device(),
        "versions": versions(),
        "commit": git_commit(project_root()),
        "library": library_hash(),
    }
    given.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
