"""Merged and exported: plain transformers gives the logits of the adapted model, also where its base is NF4."""

import json

import pytest
import torch
from chat_examples import examples, whole
from safetensors.torch import load_file
from tiny_chat import WIDTH, random_ecg, tiny_chat, tiny_llama, tiny_tokenizer

from ecgchat_lib.chat.checkpoint import PROJECTOR, load_chat_model, save_chat
from ecgchat_lib.chat.export import EXPORT, export_chat, merge
from ecgchat_lib.chat.language_model import LanguageModel, nf4_config, quiet_loading
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.train import TrainConfig, add_lora, train_chat
from ecgchat_lib.errors import EcgChatError, ParameterError

ENCODER = {"name": "x", "sha256": "ab" * 32}


def in_nf4(folder):
    from transformers import AutoModelForCausalLM

    if not folder.exists():
        tiny_llama(hidden=64).save_pretrained(folder)
    with quiet_loading():
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=nf4_config(torch.float32), device_map="cpu", dtype=torch.float32
        )
    return LanguageModel(model, tiny_tokenizer(), "language-model", f"{0:064d}", True)


def trained(folder, lm=None):
    if lm is None:
        chat = tiny_chat()
        lm = whole(chat)
    else:
        chat = EcgChat(lm.model, lm.tokenizer, Projector(WIDTH, 64), tiny_chat().template)
    add_lora(chat, rank=2, alpha=4, dropout=0.0)
    train_chat(chat, examples(chat), random_ecg(4), TrainConfig(steps=5, learning_rate=2e-2))
    save_chat(chat, folder, lm, encoder=ENCODER, grounding=["tokens"])
    return chat


def fresh():
    return LanguageModel(tiny_llama(), tiny_tokenizer(), "language-model", f"{0:064d}", False)


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def reload(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_loading():
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


IDS = torch.tensor([[5, 80, 200, 7, 300, 12]])


def test_transformers_alone_gives_the_adapted_model_s_logits(tmp_path):
    chat = trained(tmp_path / "chat")
    expected, bare = logits_of(chat.language_model, IDS), logits_of(tiny_llama(), IDS)
    found = export_chat(tmp_path / "chat", tmp_path / "out", language_model=fresh())
    model, tokenizer = reload(tmp_path / "out")
    assert type(model).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits_of(model, IDS), expected, atol=1e-4, rtol=1e-4)
    assert (expected - bare).abs().max() > 0.05
    assert found.largest_difference < 1e-4 * found.spread
    assert tokenizer("sinus rhythm").input_ids == tiny_tokenizer()("sinus rhythm").input_ids
    assert model.generation_config.eos_token_id == chat.language_model.generation_config.eos_token_id
    for name, tensor in load_file(tmp_path / "out" / PROJECTOR).items():
        assert torch.equal(tensor, chat.projector.state_dict()[name])
    about = json.loads((tmp_path / "out" / EXPORT).read_text())
    assert about["template"] == "smollm2"
    assert about["grounding"] == ["tokens"]
    config = (tmp_path / "out" / "config.json").read_text()
    assert "quantization" not in config
    assert str(tmp_path) not in config
    assert "convert_hf_to_gguf.py" in "\n".join(found.lines())


def test_an_answer_about_an_ecg_is_the_same_with_the_exported_parts(tmp_path):
    chat = trained(tmp_path / "chat")
    export_chat(tmp_path / "chat", tmp_path / "out", language_model=fresh())
    model, tokenizer = reload(tmp_path / "out")
    projector = Projector(WIDTH, chat.projector.hidden)
    projector.load_state_dict(load_file(tmp_path / "out" / PROJECTOR))
    other = EcgChat(model, tokenizer, projector, chat.template).eval()
    items = [item.encoded for item in examples(chat)]
    with torch.no_grad():
        expected, _ = chat.eval().answer_logits(chat.prepare(items, random_ecg(4)))
        found, _ = other.answer_logits(other.prepare(items, random_ecg(4)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_adapters_on_nf4_are_merged_into_what_nf4_multiplies_with(tmp_path):
    chat = trained(tmp_path / "chat", in_nf4(tmp_path / "base"))
    expected = logits_of(chat.eval().language_model, IDS)
    found = export_chat(tmp_path / "chat", tmp_path / "out", language_model=in_nf4(tmp_path / "base"))
    assert found.from_nf4
    model, _ = reload(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    off = (logits_of(model, IDS) - expected).abs().max()
    assert off < 1e-3 * expected.std()
    # the same adapters on the weights before they were rounded: NF4's error shows
    lm = LanguageModel(tiny_llama(hidden=64), tiny_tokenizer(), "language-model", f"{0:064d}", False)
    other, _ = load_chat_model(tmp_path / "chat", language_model=lm, trainable=True)
    error = (logits_of(merge(other.language_model), IDS) - expected).abs().max()
    assert error > 20 * off


def test_float16_files_are_half_the_size_and_a_little_off(tmp_path):
    chat = trained(tmp_path / "chat")
    expected = logits_of(chat.language_model, IDS)
    large = export_chat(tmp_path / "chat", tmp_path / "32", language_model=fresh())
    small = export_chat(tmp_path / "chat", tmp_path / "16", language_model=fresh(), half=True)
    weights = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("32", "16")]
    assert weights[1] < 0.55 * weights[0]
    assert large.largest_difference < small.largest_difference
    model, _ = reload(tmp_path / "16")
    assert model.dtype == torch.float16
    assert (logits_of(model.float(), IDS) - expected).abs().max() < 0.05 * expected.std()


def test_a_folder_without_adapters_exports_the_language_model(tmp_path):
    chat = tiny_chat()
    save_chat(chat, tmp_path / "chat", whole(chat), encoder=ENCODER)
    found = export_chat(tmp_path / "chat", tmp_path / "out", language_model=fresh())
    assert found.largest_difference == 0.0
    assert torch.equal(logits_of(reload(tmp_path / "out")[0], IDS), logits_of(tiny_llama(), IDS))


def test_nothing_is_written_over_or_half_written(tmp_path, monkeypatch):
    trained(tmp_path / "chat")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ParameterError, match="isn't an empty folder"):
        export_chat(tmp_path / "chat", tmp_path / "full", language_model=fresh())
    other = LanguageModel(tiny_llama(seed=1), tiny_tokenizer(), "language-model", "f" * 64, False)
    with pytest.raises(EcgChatError, match="trained with the language model"):
        export_chat(tmp_path / "chat", tmp_path / "out", language_model=other)
    monkeypatch.setattr("ecgchat_lib.chat.export.merge", lambda model, dtype: tiny_llama(seed=2))
    with pytest.raises(EcgChatError, match="Nothing was written"):
        export_chat(tmp_path / "chat", tmp_path / "out", language_model=fresh())
    assert not (tmp_path / "out").exists()
