"""The mini chat model's card, written from its results. Taught in: 12 §6."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecgchat_lib.chat.checkpoint import write_text

MODELS = {
    "own_ecg": "the model",
    "other_tokens": "another's tokens",
    "twin": "text-only twin",
    "template": "rules alone",
}
MODES = {"tokens": "ECG tokens alone", "all": "tokens, measured values and signs"}
SETS = {"fold9": "PTB-XL, fold 9", "real_sample": "CPSC2018, A0001–A0010"}
QUESTIONS = (
    ("presence", "balanced_accuracy", "is the finding there? (balanced accuracy)"),
    ("presence", "mean_over_these_findings", "the same, mean over findings with 5 or more of each"),
    ("rhythm", "accuracy", "rhythm: sinus, fibrillation or other (accuracy)"),
    ("rhythm", "mean_recall", "the same, mean of the recalls of the three"),
    ("rate", "within_5_per_minute", "rate within 5 per minute of the measured"),
)


def write_card(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write the model card, README.md, from the results; every number in it is theirs."""
    recipe, data, training = results["recipe"], results["data"], results["training"]
    loss = training["own"]["loss"]["stage2"]
    twin, stage2 = training["twin"]["loss"]["stage2"], recipe["stage2"]
    asks = recipe["questions"]
    text = f"""# ECG-Chat mini

A projector and LoRA adapters that let SmolLM2-135M-Instruct answer short questions about a 12-lead ECG. They belong to
the language model and the encoder (`{results["encoder"]["name"]}`) whose hashes stand in `manifest.json`, and refuse
others. **For teaching; no medical device. It is often wrong. Nobody must be treated by what it says.**

- License of these weights: CC BY 4.0, as the recordings they were trained on. Language model: SmolLM2-135M-Instruct,
  Apache-2.0, not included.
- Trained on {data["real_train"]} recordings of PTB-XL, folds 1–8 (Wagner et al. 2020, CC BY 4.0), drawn by rarity, and
  {data["synthetic_train"]} synthetic ones, drawn {recipe["synthetic_weight"]} times as often.
- Conversations: by rules from statements and measured values (`ecgchat_lib/instruct`); each checked against both.
  {_groundings(results)}
- Recipe: `python -m ecgchat_lib.chat.mini_recipe`, seed {recipe["seed"]}: {recipe["spelling_steps"]} steps of spelling,
  {recipe["stage1"]["steps"]} of stage 1, {stage2["steps"]} of stage 2, each with {stage2["batch"]} sequence of up to
  {asks} questions; LoRA rank {recipe["rank"]} on every linear layer but the head; float32. In the first
  {recipe["all_right"]} steps of stage 2 the model read words that are spelled right, in the next {recipe["fade"]} less
  and less of them, then none.
- Loss of stage 2, in nats per answer token, means of 25 parts of the run: {loss[0]:.2f} in the first and
  {loss[-1]:.2f} in the last; the twin's {twin[0]:.2f} and {twin[-1]:.2f}.

## Results

Reporting half of fold 9 (encoder and settings were chosen on the other half), and ten recordings of another dataset.
Greedy decoding. Each finding is asked about as often where it is absent as where it is present; balanced accuracy is by
the answer's first word. Intervals: 95 %, from resampled patients.

Beside *the model*: the same model given *another's tokens*, the words in the prompt being the own ones; its *text-only
twin*, which had the same training with the recordings' tokens shuffled; and *rules alone*, which say what is commonest
in training, or, where the prompt holds words, repeat these.

{_table(results)}

{_difference(results)}

## Limits

- Rate and intervals are copied from the measured values where these are in the prompt; where they are wrong, so is the
  answer. From the tokens alone the rate is often off.
- It knows the findings of `ecgchat_lib/instruct/findings.py` and the wordings of `ecgchat_lib/instruct/wording.py`.
  Other questions get a fluent answer without ground, and it doesn't say that it doesn't know.
- Leads were scaled one by one: what needs millivolts (hypertrophy, low voltage) it can only guess from shapes.
- Trained on adults of one center, read in short recordings of 10 s. Pacemakers, children and rare rhythms are nearly
  absent.
- Statements of PTB-XL are partly unvalidated machine reports; the model repeats their habits.
- Earlier versions of this model were scored on the reporting half too (balanced accuracy 0.54 to 0.85 by version and
  prompt). No weights were picked on it, but the choice to go on from them was made knowing these figures.
"""
    path = folder / "README.md"
    write_text(path, text)
    return path


def _groundings(results: Mapping[str, Any]) -> str:
    """Say which share of the prompts held what."""
    parts = [f"{', '.join(reversed(names))} in {100 * share:.0f} %" for names, share in results["groundings"]]
    return f"Prompts held {'; '.join(parts)}."


def _difference(results: Mapping[str, Any]) -> str:
    """Say how much better than its twin the model answers."""
    parts = []
    for mode, words in MODES.items():
        found = results["results"]["fold9"][mode]["own_ecg_less_twin"]
        low, high = found["interval_95"]
        parts.append(f"{found['balanced_accuracy']:+.3f} ({low:+.3f} to {high:+.3f}) with {words}")
    return f"The model less its twin, balanced accuracy of the yes/no questions on fold 9: {'; '.join(parts)}."


def _table(results: Mapping[str, Any]) -> str:
    lines = [
        f"| recordings | the prompt holds | question | answers | {' | '.join(MODELS.values())} |",
        "| --- " * (4 + len(MODELS)) + "|",
    ]
    for key, name in SETS.items():
        for mode, words in MODES.items():
            found = results["results"][key][mode]
            for kind, figure, asked in QUESTIONS:
                if found["own_ecg"].get(kind, {}).get(figure) is None:
                    continue
                cells = [_cell(found[model].get(kind, {}), figure) for model in MODELS]
                lines.append(f"| {name} | {words} | {asked} | {found['own_ecg'][kind]['n']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any], figure: str) -> str:
    if found.get(figure) is None:
        return "–"
    has_interval = figure in ("balanced_accuracy", "mean_recall", "within_5_per_minute")
    low, high = found["interval_95"] if has_interval else (0, 0)
    return f"{found[figure]:.3f}" + (f" ({low:.3f} to {high:.3f})" if has_interval else "")
