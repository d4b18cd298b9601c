"""The two stages and the adapters on a tiny random Llama; SmolLM2 itself in a slow test."""

import pytest
import torch
from chat_examples import examples, snapshot
from tiny_chat import WIDTH, random_ecg, tiny_chat, tiny_llama

from ecgchat_lib.chat.language_model import load_language_model, nf4_config
from ecgchat_lib.chat.train import (
    TrainConfig,
    add_lora,
    check_gradients,
    linear_layers,
    train_chat,
    train_projector,
    trained_parameters,
)
from ecgchat_lib.errors import EcgChatError, ParameterError

LAYERS_PER_BLOCK = 7  # q, k, v, o, gate, up, down


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
