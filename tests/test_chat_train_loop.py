"""The training loop: equal to the plain loop it grew from, each setting does what it says, resume is exact."""

import json
import math
from dataclasses import replace

import pytest
import torch
from chat_examples import examples, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import ECG_TOKENS, random_ecg, tiny_chat
from torch import nn

from ecgchat_lib.chat.batches import Example, batch_order, sequence_lengths
from ecgchat_lib.chat.language_model import quiet_loading
from ecgchat_lib.chat.template import IGNORED, encode
from ecgchat_lib.chat.train import (
    TrainConfig,
    add_lora,
    check_gradients,
    train_chat,
    train_projector,
    trained_parameters,
    validation_loss,
)
from ecgchat_lib.chat.train_state import BEST, STATE, _read, write_tensors
from ecgchat_lib.coca.curves import read_curve
from ecgchat_lib.errors import EcgChatError, ParameterError


def adapted(dropout=0.05, seed=0):
    chat = tiny_chat(seed)
    add_lora(chat, rank=2, alpha=4, dropout=dropout, seed=3)
    return chat


def plain_loop(chat, items, ecg, config):
    """The loop without accelerate that the shipped weights were trained with, written down once more."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)

    def endless():
        while True:
            yield from torch.randperm(len(items), generator=generator).tolist()

    named = {name: p for name, p in chat.named_parameters() if p.requires_grad}
    rate = config.projector_rate or config.learning_rate
    groups = [
        {"params": [p for n, p in named.items() if n.startswith("projector.")], "lr": rate},
        {"params": [p for n, p in named.items() if not n.startswith("projector.")], "lr": config.learning_rate},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98), weight_decay=0.0)
    warmup = max(1, round(config.warmup * config.steps))

    def factor(step):
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    order, losses = endless(), []
    chat.train()
    for _ in range(config.steps):
        total = 0.0
        for _ in range(config.accumulate):
            chosen = [items[next(order)] for _ in range(config.batch)]
            loss = chat([item.encoded for item in chosen], ecg[[item.ecg[0] for item in chosen]])
            (loss / config.accumulate).backward()
            total += float(loss.detach()) / config.accumulate
        nn.utils.clip_grad_norm_(list(named.values()), config.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    chat.eval()
    return losses


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_defaults_equal_the_plain_loop_to_the_bit(stage, accumulate):
    config = TrainConfig(steps=7, batch=2, accumulate=accumulate, learning_rate=1e-2, projector_rate=3e-3, seed=5)
    runs = []
    for train in (plain_loop, train_projector if stage == 1 else train_chat):
        chat = tiny_chat() if stage == 1 else adapted()
        if stage == 1:
            chat.language_model.requires_grad_(False)
        runs.append((train(chat, examples(chat), random_ecg(4), config), snapshot(chat)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])


def test_token_mean_weighs_each_answer_token_alike():
    """Two passes of one example give the gradient of one pass of both, though their answers differ in length."""
    gradients = []
    for batch, accumulate in ((2, 1), (1, 2)):
        chat = adapted(dropout=0.0)
        items = [examples(chat)[0], long_example(chat)]
        config = TrainConfig(steps=1, batch=batch, accumulate=accumulate, token_mean=True, clip=1e9, warmup=0.0)
        taken = {}
        for name, parameter in trained_parameters(chat).items():
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name, taken=taken: taken.__setitem__(name, p.grad.clone())
            )
        train_chat(chat, items, random_ecg(4), config)
        gradients.append(taken)
    for name, one in gradients[0].items():
        torch.testing.assert_close(one, gradients[1][name], atol=1e-6, rtol=1e-4)


def long_example(chat, ecg=1):
    answer = "It is sinus rhythm, at 72 beats per minute, and I see nothing odd in it."
    return Example(encode([("<ecg>\nWhat is it?", answer)], chat.tokenizer, chat.template), (ecg,))


def test_gradient_checkpointing_gives_the_same_training():
    weights = []
    for blocks in (False, True):
        chat = adapted()
        config = TrainConfig(steps=4, batch=2, learning_rate=1e-2, checkpoint_blocks=blocks)
        losses = train_chat(chat, examples(chat), random_ecg(4), config)
        weights.append((losses, snapshot(chat)))
        assert not any(getattr(m, "gradient_checkpointing", False) for m in chat.modules())
        assert not chat.language_model.get_input_embeddings()._forward_hooks
    assert weights[0][0] == pytest.approx(weights[1][0], abs=1e-6)
    for name, one in weights[0][1].items():
        torch.testing.assert_close(one, weights[1][1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointed_blocks_need_an_input_that_requires_a_gradient(hook):
    """Words come from a frozen embedding; in torch's reentrant way the adapters then learn nothing, and no error."""
    chat = adapted(dropout=0.0).train()
    for name, parameter in trained_parameters(chat).items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    model = chat.language_model.get_base_model()
    with quiet_loading():
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.disable_input_require_grads()
    if hook:
        model.enable_input_require_grads()
    ids = torch.tensor([chat.tokenizer("Yes, I see sinus rhythm.").input_ids])
    loss = model(inputs_embeds=model.get_input_embeddings()(ids), labels=ids).loss
    adapters = [p for name, p in chat.named_parameters() if "lora_A" in name]
    if not hook:
        assert not loss.requires_grad
        return
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in adapters)


def test_a_batch_without_any_ecg_trains_the_adapters():
    chat = adapted(dropout=0.0)
    texts = [encode([("What is the rate?", "72 beats.")], chat.tokenizer, chat.template)]
    before = snapshot(chat)
    items = [Example(text, ()) for text in texts]
    train_chat(chat, items, random_ecg(1), TrainConfig(steps=3, batch=1, learning_rate=1e-2))
    changed = {name for name, p in chat.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_mixed_precision_learns_and_keeps_weights_in_float32():
    chat = adapted(dropout=0.0)
    config = TrainConfig(steps=12, batch=4, learning_rate=1e-2, precision="bf16")
    losses = train_chat(chat, examples(chat), random_ecg(4), config)
    assert losses[-1] < 0.9 * losses[0]
    assert {p.dtype for p in trained_parameters(chat).values()} == {torch.float32}
    chat.projector.half()
    with pytest.raises(ParameterError, match=r"projector\.norm\.weight isn't float32"):
        train_chat(chat, examples(chat), random_ecg(4), replace(config, precision="fp16"))


def test_fused_adamw_ends_in_nearly_the_same_weights():
    weights = []
    for fused in (False, True):
        chat = adapted(dropout=0.0)
        train_chat(chat, examples(chat), random_ecg(4), TrainConfig(steps=3, learning_rate=1e-3, fused=fused))
        weights.append(snapshot(chat))
    for name, one in weights[0].items():
        torch.testing.assert_close(one, weights[1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it works where there is CUDA")
def test_bitsandbytes_optimizers_say_that_they_need_cuda():
    chat = adapted()
    with pytest.raises(ParameterError, match="needs CUDA"):
        train_chat(chat, examples(chat), random_ecg(4), TrainConfig(steps=1, optimizer="paged_adamw_8bit"))


@pytest.mark.parametrize(
    "wrong", [{"precision": "fp8"}, {"optimizer": "sgd"}, {"clip": 0.0}, {"warmup": 2.0}, {"save_every": 0}]
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        TrainConfig(steps=1, **wrong)


def test_a_sequence_that_is_too_long_is_named():
    chat = adapted()
    items = [*examples(chat), long_example(chat)]
    longest = max(sequence_lengths(items, ECG_TOKENS))
    assert longest == len(items[-1].encoded.ids) - 1 + ECG_TOKENS
    train_chat(chat, items, random_ecg(4), TrainConfig(steps=1, max_length=longest))
    with pytest.raises(ParameterError, match=f"longer than {longest - 1} tokens; the first is number 4 with {longest}"):
        train_chat(chat, items, random_ecg(4), TrainConfig(steps=1, max_length=longest - 1))


def test_nan_weights_are_an_error_and_not_a_step():
    chat = adapted()
    ecg = random_ecg(4)
    ecg[2] = float("nan")
    with pytest.raises(EcgChatError, match="the loss of step 0 is nan"):
        train_chat(chat, examples(chat), ecg, TrainConfig(steps=2, batch=4))
    assert all(p.isfinite().all() for p in trained_parameters(chat).values())


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), size=st.integers(1, 7), grouped=st.booleans())
def test_each_round_of_batches_holds_each_example_once(lengths, size, grouped):
    order = batch_order(lengths, size, 3, grouped=grouped)
    pool = size * max(1, min(50, len(lengths) // size)) if grouped else size
    drawn = [next(order) for _ in range(len(lengths) * pool // size)]
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(lengths))
    assert (counts == pool).all()  # len(lengths) * pool draws: `pool` rounds
    again = batch_order(lengths, size, 3, grouped=grouped)
    assert [next(again) for _ in drawn] == drawn


def test_grouping_by_length_saves_padding():
    lengths = torch.randint(10, 200, (400,), generator=torch.Generator().manual_seed(0)).tolist()

    def places(grouped):
        order = batch_order(lengths, 8, 0, grouped=grouped)
        return sum(8 * max(lengths[k] for k in next(order)) for _ in range(50))

    assert places(True) < 0.7 * places(False)
    assert places(True) < 1.1 * sum(lengths)


def test_validation_keeps_the_best_weights(tmp_path):
    chat, ecg = adapted(dropout=0.0), random_ecg(8)
    config = TrainConfig(steps=12, batch=2, learning_rate=5e-2, evaluate_every=3, save_every=100)
    held_out = [replace(item, ecg=(item.ecg[0] + 4,)) for item in examples(chat)]
    train_chat(chat, examples(chat), ecg, config, folder=tmp_path, validation=held_out)
    values = {e["step"]: e["validation_loss"] for e in read_curve(tmp_path) if "validation_loss" in e}
    assert sorted(values) == [3, 6, 9, 12]
    from ecgchat_lib.chat.train import make_accelerator

    now = validation_loss(chat, held_out, ecg, config, make_accelerator(chat, config))
    assert now == pytest.approx(min(values.values()), abs=1e-6)
    with torch.no_grad():
        together = chat.eval()([item.encoded for item in held_out], ecg[[item.ecg[0] for item in held_out]])
    assert now == pytest.approx(float(together), abs=1e-5)
    assert (tmp_path / BEST).is_file()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_resume_is_exact(tmp_path, dropout):
    config = TrainConfig(
        steps=9, batch=2, accumulate=2, learning_rate=1e-2, group_lengths=True, save_every=2, evaluate_every=4
    )
    whole = adapted(dropout)
    losses = train_chat(whole, examples(whole), random_ecg(4), config, validation=examples(whole)[:2])
    for until in (3, 6, 9):
        torch.rand(until)  # another state of the world
        chat = adapted(dropout)
        found = train_chat(
            chat, examples(chat), random_ecg(4), config, folder=tmp_path, validation=examples(chat)[:2], until=until
        )
        assert found == losses[:until]
    assert all(torch.equal(p, snapshot(chat)[name]) for name, p in snapshot(whole).items())
    assert [entry["loss"] for entry in read_curve(tmp_path)] == losses
    assert read_curve(tmp_path)[0]["tokens"] > 0


def test_what_was_trained_before_leaves_no_gradient_behind():
    config = TrainConfig(steps=2, batch=2, learning_rate=1e-2)
    clean, used = adapted(0.0), adapted(0.0)
    for parameter in used.projector.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert train_chat(clean, examples(clean), random_ecg(4), config) == train_chat(
        used, examples(used), random_ecg(4), config
    )
    assert all(torch.equal(p, snapshot(used)[name]) for name, p in snapshot(clean).items())


def test_another_run_s_state_is_refused(tmp_path):
    config = TrainConfig(steps=4, batch=2, learning_rate=1e-2)
    chat = adapted()
    train_chat(chat, examples(chat), random_ecg(4), config, folder=tmp_path, until=2)
    with pytest.raises(EcgChatError, match=r"other settings \(clip, seed\)"):
        train_chat(adapted(), examples(chat), random_ecg(4), replace(config, seed=1, clip=2.0), folder=tmp_path)
    with pytest.raises(EcgChatError, match=r"other settings \(content, data\)"):
        train_chat(adapted(), examples(chat)[:3], random_ecg(4), config, folder=tmp_path)
    items = examples(chat)
    items[0], items[2] = replace(items[0], ecg=items[2].ecg), replace(items[2], ecg=items[0].ecg)  # of the same length
    with pytest.raises(EcgChatError, match=r"other settings \(content\)"):
        train_chat(adapted(), items, random_ecg(4), config, folder=tmp_path)
    other = tiny_chat()
    add_lora(other, rank=3)
    with pytest.raises(EcgChatError, match="tensors don't fit this model, the first is language_model"):
        train_chat(other, examples(chat), random_ecg(4), config, folder=tmp_path)
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:-100])
    with pytest.raises(EcgChatError, match="not a readable training state"):
        train_chat(adapted(), examples(chat), random_ecg(4), config, folder=tmp_path)


def test_a_state_without_a_hash_of_the_texts_goes_on(tmp_path):
    """As it was written before `content` was noted; the sizes are checked alone."""
    config = TrainConfig(steps=4, batch=2, learning_rate=1e-2)
    whole = adapted()
    losses = train_chat(whole, examples(whole), random_ecg(4), config)
    chat = adapted()
    train_chat(chat, examples(chat), random_ecg(4), config, folder=tmp_path, until=2)
    tensors, about = _read(tmp_path / STATE)
    del about["content"]
    write_tensors(tmp_path / STATE, tensors, {"state": json.dumps(about)})
    again = adapted()
    assert train_chat(again, examples(again), random_ecg(4), config, folder=tmp_path) == losses


def test_the_state_holds_no_frozen_weight(tmp_path):
    from safetensors import safe_open

    chat = adapted()
    train_chat(chat, examples(chat), random_ecg(4), TrainConfig(steps=1), folder=tmp_path)
    with safe_open(tmp_path / STATE, "pt") as file:
        names = {name.removeprefix("weight.") for name in file.keys() if name.startswith("weight.")}  # noqa: SIM118
        about = json.loads(file.metadata()["state"])
    assert names == set(trained_parameters(chat))
    assert about["step"] == 1
    assert "/" not in json.dumps(about)


def test_check_gradients_sees_a_gradient_that_is_not_finite():
    chat = adapted()
    for parameter in trained_parameters(chat).values():
        parameter.grad = torch.ones_like(parameter)
    check_gradients(chat)
    chat.projector.up.bias.grad[0] = float("inf")
    with pytest.raises(EcgChatError, match=r"projector\.up\.bias"):
        check_gradients(chat)


def test_answers_alone_count_as_tokens():
    from ecgchat_lib.chat.batches import answer_tokens

    chat = adapted()
    items = examples(chat)
    _, targets = chat.answer_logits(chat.prepare([i.encoded for i in items], random_ecg(4)))
    assert answer_tokens(items) == len(targets)
    assert all(label == IGNORED for item in items for label in item.encoded.labels[:1])
