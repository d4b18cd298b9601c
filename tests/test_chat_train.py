"""Training, adapters, checkpoints and memory plans, on a tiny random Llama; SmolLM2 itself in the slow tests."""

import json

import pytest
import torch
from tiny_chat import HIDDEN, WIDTH, random_ecg, tiny_chat, tiny_llama, tiny_tokenizer

from ecgchat_lib.chat.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    MANIFEST,
    PROJECTOR,
    load_chat_model,
    read_manifest,
    save_chat,
)
from ecgchat_lib.chat.language_model import LanguageModel, load_language_model, nf4_config, plan
from ecgchat_lib.chat.template import encode, pack
from ecgchat_lib.chat.train import (
    Example,
    TrainConfig,
    add_lora,
    check_gradients,
    linear_layers,
    train_chat,
    train_projector,
    trained_parameters,
)
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError

LAYERS_PER_BLOCK = 7  # q, k, v, o, gate, up, down


def examples(chat, n=4):
    answers = ["Yes.", "No."]
    out = []
    for k in range(n):
        turns = [encode([("<ecg>\nIs it normal?", answers[k % 2])], chat.tokenizer, chat.template)]
        turns.append(encode([("<ecg>\nIs it odd?", answers[1 - k % 2])], chat.tokenizer, chat.template))
        out.append(Example(pack(turns) if k % 2 else turns[0], k))
    return out


def whole(chat, seed=0):
    return LanguageModel(chat.language_model, chat.tokenizer, "language-model", f"{seed:064d}", False)


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_stage_1_trains_the_projector_and_nothing_else():
    chat, ecg = tiny_chat(), random_ecg(4)
    before = snapshot(chat)
    losses = train_projector(chat, examples(chat), ecg, TrainConfig(steps=30, batch=4, learning_rate=1e-2))
    changed = {name for name, p in chat.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.startswith("projector.")}
    assert losses[-1] < 0.7 * losses[0]
    assert not chat.training


def test_stage_2_trains_projector_and_adapters_and_nothing_else():
    chat, ecg = tiny_chat(), random_ecg(4)
    names = add_lora(chat, rank=4, alpha=8)
    assert len(names) == 2 * LAYERS_PER_BLOCK
    before = snapshot(chat)
    losses = train_chat(chat, examples(chat), ecg, TrainConfig(steps=30, batch=4, learning_rate=1e-2))
    changed = {name for name, p in chat.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.startswith("projector.") or "lora_" in name}
    assert len([name for name in changed if "lora_A" in name]) == len(names)
    assert losses[-1] < 0.5 * losses[0]


def test_training_twice_gives_the_same_weights():
    runs = []
    for _ in range(2):
        chat = tiny_chat()
        add_lora(chat, rank=2, alpha=4, seed=3)
        train_chat(chat, examples(chat), random_ecg(4), TrainConfig(steps=4, batch=2, accumulate=2, seed=3))
        runs.append(snapshot(chat))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_an_unadapted_or_headless_model_is_an_error():
    chat = tiny_chat()
    with pytest.raises(EcgChatError, match="no LoRA adapter"):
        train_chat(chat, examples(chat), random_ecg(4), TrainConfig(steps=1))
    chat.language_model.model.layers = torch.nn.ModuleList()
    with pytest.raises(EcgChatError, match="no linear layer"):
        add_lora(chat)
    with pytest.raises(EcgChatError, match="no examples"):
        train_projector(tiny_chat(), [], random_ecg(1), TrainConfig(steps=1))
    with pytest.raises(ParameterError, match="steps=0"):
        TrainConfig(steps=0)


def test_a_tensor_without_gradient_is_named():
    chat, ecg = tiny_chat(), random_ecg(4)
    add_lora(chat, rank=2)
    chat.extra = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(EcgChatError, match="1 trained tensors get no gradient, the first is extra"):
        train_chat(chat, examples(chat), ecg, TrainConfig(steps=3))


def test_every_adapter_gets_a_gradient_after_the_first_step():
    chat, ecg = tiny_chat(), random_ecg(4)
    add_lora(chat, rank=2)
    items = examples(chat)
    chat([item.encoded for item in items], ecg).backward()
    with pytest.raises(EcgChatError, match="lora_A"):
        check_gradients(chat)  # B is still zero, so A gets nothing yet
    with torch.no_grad():
        for name, parameter in trained_parameters(chat).items():
            if "lora_B" in name:
                parameter.add_(parameter.grad)
    chat([item.encoded for item in items], ecg).backward()
    check_gradients(chat)


@pytest.mark.parametrize("trainable", [True, False])
def test_reload_gives_equal_logits(tmp_path, trainable):
    chat, ecg = tiny_chat(), random_ecg(4)
    lm = whole(chat)
    add_lora(chat, rank=4, alpha=8)
    items = examples(chat)
    train_chat(chat, items, ecg, TrainConfig(steps=4, learning_rate=1e-2))
    batch = [item.encoded for item in items]
    before, _ = chat.answer_logits(chat.prepare(batch, ecg))
    save_chat(chat, tmp_path, lm, encoder={"name": "x", "sha256": "ab" * 32}, about={"n": 1})
    fresh = LanguageModel(tiny_llama(), tiny_tokenizer(), "language-model", lm.sha256, False)
    loaded, _ = load_chat_model(tmp_path, language_model=fresh, encoder_sha256="ab" * 32, trainable=trainable)
    after, _ = loaded.answer_logits(loaded.prepare(batch, ecg))
    if trainable:
        assert torch.equal(before, after)
    else:  # merged into the weights: equal up to rounding
        torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
    untrained, _ = tiny_chat().answer_logits(tiny_chat().prepare(batch, ecg))
    assert (after - untrained).abs().max() > 1e-2
    assert bool(trained_parameters(loaded)) or not trainable


def test_saved_folder_names_no_machine_and_keeps_hashes(tmp_path):
    chat = tiny_chat()
    lm = whole(chat)
    add_lora(chat, rank=2)
    save_chat(chat, tmp_path, lm, encoder={"name": "mini", "sha256": "cd" * 32})
    manifest = read_manifest(tmp_path)
    assert set(manifest["sha256"]) == {PROJECTOR, ADAPTER, ADAPTER_CONFIG}
    assert manifest["projector"] == {"width": WIDTH, "hidden": HIDDEN, "input_norm": True}
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == "language-model"
    assert "/" not in json.dumps([config, manifest["about"]])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([PROJECTOR, ADAPTER, ADAPTER_CONFIG, MANIFEST])


def test_wrong_files_and_wrong_partners_are_refused(tmp_path):
    chat = tiny_chat()
    lm = whole(chat)
    with pytest.raises(MissingPartError, match=r"no manifest\.json"):
        read_manifest(tmp_path)
    save_chat(chat, tmp_path, lm, encoder={"name": "mini", "sha256": "cd" * 32})
    with pytest.raises(EcgChatError, match="trained with the encoder cdcdcdcd"):
        load_chat_model(tmp_path, language_model=lm, encoder_sha256="ef" * 32)
    other = LanguageModel(lm.model, lm.tokenizer, lm.name, "f" * 64, False)
    with pytest.raises(EcgChatError, match="trained with the language model"):
        load_chat_model(tmp_path, language_model=other)
    data = bytearray((tmp_path / PROJECTOR).read_bytes())
    data[-1] ^= 1
    (tmp_path / PROJECTOR).write_bytes(data)
    with pytest.raises(EcgChatError, match="sha256"):
        load_chat_model(tmp_path, language_model=lm)
    (tmp_path / PROJECTOR).unlink()
    with pytest.raises(MissingPartError, match="is missing"):
        load_chat_model(tmp_path, language_model=lm)
    (tmp_path / MANIFEST).write_text('{"format": "other", "sha256": {}}')
    with pytest.raises(EcgChatError, match="another format"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("not json")
    with pytest.raises(EcgChatError, match="not a readable manifest"):
        read_manifest(tmp_path)


def test_qlora_on_nf4_weights_learns_on_this_machine(tmp_path):
    from transformers import AutoModelForCausalLM

    from ecgchat_lib.chat.language_model import quiet_loading

    tiny_llama(hidden=64).save_pretrained(tmp_path)
    with quiet_loading():
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=nf4_config(torch.float32), device_map="cpu", dtype=torch.float32
        )
    chat = tiny_chat()
    from ecgchat_lib.chat.model import EcgChat
    from ecgchat_lib.chat.projector import Projector

    chat = EcgChat(model, chat.tokenizer, Projector(WIDTH, 64), chat.template)
    names = add_lora(chat, rank=4, alpha=8, dropout=0.0)
    assert len(names) == 2 * LAYERS_PER_BLOCK
    frozen = {n: p.detach().clone() for n, p in chat.named_parameters() if p.dtype == torch.uint8}
    assert len(frozen) == len(names)
    losses = train_chat(chat, examples(chat), random_ecg(4), TrainConfig(steps=20, batch=4, learning_rate=1e-2))
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(p, frozen[n]) for n, p in chat.named_parameters() if n in frozen)


def test_plan_counts_what_is_there():
    model = tiny_llama()
    full = plan(model.config, quantized=False, rank=4)
    assert full.parameters == sum(p.numel() for p in model.parameters())
    assert full.weights == full.parameters * 4
    chat = tiny_chat()
    add_lora(chat, rank=4)
    assert full.trainable == sum(p.numel() for n, p in trained_parameters(chat).items() if "lora_" in n)
    assert full.adapters == 16 * full.trainable
    assert plan(model.config, quantized=True).weights < full.weights
    assert plan(model.config, quantized=False, batch=2).activations == 2 * full.activations
    assert full.total == full.weights + full.adapters + full.activations
    with pytest.raises(ParameterError, match="rank=0"):
        plan(model.config, quantized=False, rank=0)


def test_linear_layers_leave_out_the_head():
    assert not any("lm_head" in name for name in linear_layers(tiny_llama()))


@pytest.mark.slow
def test_smollm2_loads_from_its_package_and_answers():
    lm = load_language_model(quantized=False)
    assert sum(p.numel() for p in lm.model.parameters()) == 134_515_008
    text = lm.tokenizer.apply_chat_template(
        [{"role": "system", "content": "S."}, {"role": "user", "content": "Q?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    from ecgchat_lib.chat.template import get_template, render

    assert render([("Q?", None)], get_template("smollm2"), system="S.")[0] == text
    ids = lm.tokenizer("The capital of France is", return_tensors="pt")
    out = lm.model.generate(**ids, max_new_tokens=3, do_sample=False)
    assert "Paris" in lm.tokenizer.decode(out[0])
    footprint = plan(lm.model.config, quantized=False).weights
    assert abs(lm.model.get_memory_footprint() / footprint - 1) < 0.01


@pytest.mark.slow
def test_smollm2_in_nf4_takes_a_third_of_the_memory():
    lm = load_language_model(quantized=True)
    footprint = plan(lm.model.config, quantized=True).weights
    assert abs(lm.model.get_memory_footprint() / footprint - 1) < 0.02
    assert footprint < 0.33 * plan(lm.model.config, quantized=False).weights
    with torch.no_grad():
        logits = lm.model(**lm.tokenizer("The capital of France is", return_tensors="pt")).logits
    assert lm.tokenizer.decode(logits[0, -1].argmax()).strip() == "Paris"
