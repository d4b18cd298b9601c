"""The model card of the mini ECG-CoCa: every number in it comes from the recipe's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

VARIANTS = {
    "words": "the report's words",
    "words_wde": "words and measured numbers",
    "numbers": "measured numbers alone",
    "shuffled": "words and another record's numbers",
}

CARD = """# ecg-coca-mini

A small ECG-CoCa: a 1-D vision transformer for 12-lead ECGs, trained together with report embeddings and a caption
decoder. It is the encoder that the notebooks of this course evaluate and that the mini chat model reads. It is **not a
medical device**: it is often wrong, and nothing it says may be used to diagnose or treat anyone.

| | |
| --- | --- |
| parameters | {all:,}, of which {encoder:,} in the ECG encoder |
| input | 12 leads in the order I II III aVR aVL aVF V1–V6, 10 s; front end {low:g}–{high:g} Hz, {fs:g} Hz, millivolts; the encoder scales each lead and tells the CLS token the scale |
| output | 101 tokens of width {width} (CLS first), an embedding of {embedding} numbers, a caption |
| encoder | two small convolutions, 100 patches of 0.1 s, {layers} transformer blocks |
| text side | the states of all-MiniLM-L6-v2, frozen and not included here; a trained matrix and a small network on them, and a network that reads measured numbers (RR, PR, QRS, QT, QTc, heights of P, R, T) at a report's end |
| files | `model.safetensors` (float16), `config.json`, `vocabulary.txt`, `manifest.json` (sha256 of each) |
| load | `from ecgchat_lib.coca.checkpoint import load_mini` |

## Data

Trained on {train_real:,} real ECGs of PTB-XL 1.0.1 (folds 1–8; a subset, the second of each pair of identical
waveforms left out) and {train_synthetic:,} synthetic ECGs of `ecgchat_lib.datasets.synthetic` (generator version
{generator_version}), which make up {synthetic_share:.0%} of the draws. Most of the real ones were available only filtered and
z-scored at 125 Hz; all went through the same front end. The texts are English sentences made from each record's SCP-ECG
statements, {wordings} wordings a record, and the hospital's own report (mostly German): {distinct_texts:,} distinct. The numbers are
those that `ecgchat_lib.ecg.measure` finds in the same recording; in a z-scored one, heights are standard deviations.

PTB-XL: Wagner P, Strodthoff N, Bousseljot R-D, Kreiseler D, Lunze FI, Samek W, Schaeffter T. PTB-XL, a large publicly
available electrocardiography dataset. Scientific Data 7, 154 (2020), doi:10.1038/s41597-020-0495-6, CC BY 4.0.
Changes: filtered, resampled, scaled, and used to train these weights.

## License

The weights: CC BY 4.0, with the attribution above. all-MiniLM-L6-v2: Apache-2.0.

## Recipe

`python -m ecgchat_lib.evaluate.mini_recipe --out FOLDER` with `ECGCHAT_REAL_DATA` set. Seed {seed}, {steps} steps of
{batch} pairs, AdamW {learning_rate:g}, warm-up {warmup}, cosine, weight decay {weight_decay:g}, clipping {clip:g}, patch dropout
{patch_dropout:g}, moving average {average:g}. Losses: contrastive {contrastive:g} (the mean over words, words with numbers, and numbers;
records with equal statements share targets), caption {caption:g}, numbers told by the CLS token {numbers:g}, and {statements:g} for
{single_statements} single statements (a sigmoid loss: is "left bundle branch block" true of this ECG?). Records are varied with their
numbers: stretched in time by up to 8 %, gains, lost millivolts, shifts, noise, gaps, missing leads.
About {minutes} minutes on one core ({device}). Fold 9 was split by patient: {choose} records chose the step
({step} of {steps}), thresholds and penalties; the other {report} are reported here.

## Results

On PTB-XL fold 9, reporting half: n = {records} records of {patients} patients. Intervals: 95 %, bootstrap over
patients. These are the float16 weights as shipped.

| zero-shot AUC by prompts | positives | mini | random encoder |
| --- | --- | --- | --- |
{zero_shot_rows}

| macro figures by prompts | classes | AUC | average precision | F1, thresholds from the choosing half | F1, best threshold on these very records | floor of that |
| --- | --- | --- | --- | --- | --- | --- |
{set_rows}

| linear probe of the superclasses, macro-AUC; labels of folds 1–8 | {probe_header} |
| --- | {probe_line} |
{probe_rows}

Recall at 1, 5 and 10 and median rank; what can't be told apart by its text counts as equally right:

| searched by | among | ECG → report | report → ECG |
| --- | --- | --- | --- |
{retrieval_rows}

The half of fold 9 that chose the step is part of "all of fold 9". The numbers were measured on the query itself, by the
same code: this shows that the encoder reads intervals off the signal, not that it understands an ECG.

Caption loss on the same records: {own:.3f} with their own ECG, {other:.3f} with another record's.

## Limits

- The set is small, and has fewer infarctions than all of PTB-XL: no figure may stand beside a published fold-10 figure.
- The prompts use words of the training texts, and the loss over single statements makes them nearly labels: "zero-shot"
  means prompted and in-domain here.
- Most real training records had lost their millivolts: heights count less than they should.
- Trained on one German hospital's records and on synthetic ones; other devices, ages and populations are untested.
- Ten seconds only; longer recordings are cut, shorter ones padded with zeros, which it has hardly seen.
"""


def model_card(record: Mapping[str, Any]) -> str:
    """Return the card of `mini_recipe.run`'s record."""
    metrics, recipe = record["metrics"], record["recipe"]
    encoder, training = recipe["model"]["encoder"], recipe["train"]
    fractions = list(metrics["probe_fractions"]["mini"])
    return CARD.format(
        **record["parameters"],
        **record["data"],
        **{key: metrics[key] for key in ("records", "patients")},
        **{key: encoder[key] for key in ("fs", "width", "embedding", "layers", "patch_dropout")},
        **{key: recipe[key] for key in ("seed", "wordings", "synthetic_share")},
        **{
            key: training[key]
            for key in ("steps", "batch", "learning_rate", "warmup", "weight_decay", "clip", "average")
        },
        **{key: training["objective"][key] for key in ("contrastive", "caption", "numbers", "statements")},
        low=encoder["band"][0],
        high=encoder["band"][1],
        step=record["chosen"]["step"],
        device=record["device"],
        minutes=round(record["seconds"] / 60),
        zero_shot_rows="\n".join(_zero_shot_rows(metrics)),
        set_rows="\n".join(_set_rows(metrics)),
        probe_header=" | ".join(f"{100 * float(one):g} %" for one in fractions),
        probe_line=" | ".join("---" for _ in fractions),
        probe_rows="\n".join(_probe_rows(metrics["probe_fractions"])),
        retrieval_rows="\n".join(_retrieval_rows(metrics)),
        own=metrics["caption"]["loss_own_ecg"],
        other=metrics["caption"]["loss_other_ecg"],
    )


def _zero_shot_rows(metrics: Mapping[str, Any]) -> list[str]:
    mini, floor = metrics["zero_shot"]["mini"], metrics["zero_shot"]["random_encoder"]
    rows = [f"| **mean of the five** | | {shown(mini['macro_auc'])} | {shown(floor['macro_auc'])} |"]
    return rows + [
        f"| {code} | {count} | {shown(mini[code])} | {shown(floor[code])} |"
        for code, count in metrics["positives"].items()
    ]


def _set_rows(metrics: Mapping[str, Any]) -> list[str]:
    sets = {"super": metrics["zero_shot"]["mini"]["report"], **metrics["zero_shot_sets"]}
    titles = {name: (f"{name}, our prompts", report) for name, report in sets.items()}
    for name, found in metrics.get("zero_shot_ckepe", {}).items():
        titles[f"{name} ckepe"] = (f"{name}, CKEPE's prompts", found.get("report", found))
    rows = []
    for title, report in titles.values():
        macro, floor = report["macro"], report["floor"]["oracle_f1"]
        classes = len(report["classes"]) - len(report["without_positives"])
        figures = " | ".join(
            shown(macro[name]) if name in macro else "–" for name in ("auc", "auprc", "f1", "oracle_f1")
        )
        rows.append(f"| {title} (n = {report['records']}) | {classes} | {figures} | {floor:.3f} |")
    return rows


def _probe_rows(probes: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, found in probes.items():
        cells = [
            shown(one["interval"]) if "interval" in one else f"{one['macro_auc']:.3f} ± {one['sd']:.3f} (5 draws)"
            for one in found.values()
        ]
        rows.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return rows


def _retrieval_rows(metrics: Mapping[str, Any]) -> list[str]:
    rows = []
    for part, title in {"retrieval_wde": "all of fold 9", "retrieval_wde_half": "the reporting half"}.items():
        for name, said in VARIANTS.items():
            found = metrics[part][name]
            cells = [_recalls(found[way]) for way in ("ecg_to_report", "report_to_ecg")]
            rows.append(f"| {said} | {title}, {found['pairs']} | {' | '.join(cells)} |")
        chance = metrics[part]["words"]["chance"]
        cell = _numbers([f"{chance[f'recall_at_{k}']:.3f}" for k in (1, 5, 10)], chance["median_rank"])
        rows.append(f"| chance, by words | {title}, {metrics[part]['words']['pairs']} | {cell} | {cell} |")
    return rows


def _recalls(found: Mapping[str, Any]) -> str:
    first = shown(found["recall_at_1"])
    others = [f"{found[f'recall_at_{k}']['value']:.3f}" for k in (5, 10)]
    return _numbers([first, *others], found["median_rank"]["value"])


def _numbers(recalls: Sequence[str], rank: float) -> str:
    return f"{' / '.join(recalls)}, rank {rank:g}"


def shown(interval: Mapping[str, float]) -> str:
    """Return a value with its interval."""
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
