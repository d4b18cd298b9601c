"""A chat model's folder: reloaded to equal logits, tied to its partners, and a strange folder is not believed."""

import json
from dataclasses import replace

import pytest
import torch
from chat_examples import examples, snapshot, whole
from safetensors.torch import load_file, save_file
from tiny_chat import ECG_TOKENS, HIDDEN, WIDTH, random_ecg, tiny_chat, tiny_llama, tiny_tokenizer

from ecgchat_lib.chat.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    MANIFEST,
    PROJECTOR,
    load_chat_model,
    read_manifest,
    save_chat,
)
from ecgchat_lib.chat.language_model import LanguageModel
from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.train import TrainConfig, add_lora, train_chat, trained_parameters
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.models import sha256_of

ENCODER = {"name": "x", "sha256": "ab" * 32}


def fresh(hidden=HIDDEN, layers=2, sha256=f"{0:064d}"):
    return LanguageModel(tiny_llama(hidden=hidden, layers=layers), tiny_tokenizer(), "language-model", sha256, False)


def trained(folder, **options):
    chat = tiny_chat()
    lm = whole(chat)
    add_lora(chat, rank=2, alpha=4)
    train_chat(chat, examples(chat), random_ecg(4), TrainConfig(steps=3, learning_rate=1e-2))
    save_chat(chat, folder, lm, encoder=ENCODER, **options)
    return chat


def logits_of(chat):
    items = examples(chat)
    return chat.answer_logits(chat.prepare([item.encoded for item in items], random_ecg(4)))[0].detach()


def tamper(folder, name, change):
    """Change a JSON file or the tensors of a file, and make the manifest agree, as a forger would."""
    path = folder / name
    if name.endswith(".json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(change(content) or content))
    else:
        tensors = load_file(path)
        save_file(change(tensors) or tensors, path, {"format": "pt"})
    if name != MANIFEST:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["sha256"][name] = sha256_of(path)
        (folder / MANIFEST).write_text(json.dumps(manifest))


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
    loaded, _ = load_chat_model(tmp_path, language_model=fresh(), encoder_sha256="ab" * 32, trainable=trainable)
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
    assert manifest["projector"] == {"width": WIDTH, "hidden": HIDDEN, "input_norm": True, "places": 0}
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == "language-model"
    assert "/" not in json.dumps([config, manifest["about"]])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([PROJECTOR, ADAPTER, ADAPTER_CONFIG, MANIFEST])


@pytest.mark.parametrize("places", [0, ECG_TOKENS])
def test_a_projector_with_places_comes_back_and_older_folders_have_none(tmp_path, places):
    chat = tiny_chat()
    chat.projector = Projector(WIDTH, HIDDEN, places=places)
    lm = whole(chat)
    save_chat(chat, tmp_path, lm, encoder={"name": "mini", "sha256": "cd" * 32})
    ecg = random_ecg(2)
    loaded, _ = load_chat_model(tmp_path, language_model=lm)
    assert torch.equal(loaded.project(ecg), chat.project(ecg))
    if not places:
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        del manifest["projector"]["places"]
        (tmp_path / MANIFEST).write_text(json.dumps(manifest))
        older, _ = load_chat_model(tmp_path, language_model=lm)
        assert torch.equal(older.project(ecg), chat.project(ecg))


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


def test_adapters_in_float16_take_half_the_room_and_change_little(tmp_path):
    chat = trained(tmp_path / "16", adapter_dtype=torch.float16)
    save_chat(chat, tmp_path / "32", whole(chat), encoder=ENCODER)
    small, large = ((tmp_path / name / ADAPTER).stat().st_size for name in ("16", "32"))
    assert small < 0.75 * large
    loaded, _ = load_chat_model(tmp_path / "16", language_model=fresh(), trainable=True)
    assert {p.dtype for p in trained_parameters(loaded).values()} == {torch.float32}
    torch.testing.assert_close(logits_of(loaded), logits_of(chat), atol=1e-3, rtol=1e-3)
    with torch.no_grad():  # what is left is the rounding and nothing else
        for name, parameter in chat.named_parameters():
            if "lora_" in name:
                parameter.copy_(parameter.half().float())
    assert torch.equal(logits_of(loaded), logits_of(chat))
    with pytest.raises(ParameterError, match="adapter_dtype"):
        save_chat(chat, tmp_path / "8", whole(chat), encoder=ENCODER, adapter_dtype=torch.bfloat16)


def test_the_manifest_says_what_the_model_was_trained_with(tmp_path):
    trained(tmp_path, grounding=["tokens", "labels"], preprocessing={"fs": 100, "z_score": False})
    manifest = read_manifest(tmp_path)
    assert manifest["grounding"] == ["labels", "tokens"]
    assert manifest["preprocessing"] == {"fs": 100, "z_score": False}
    assert manifest["template"] == "smollm2"
    assert manifest["language_model"] == {
        "part": "language-model",
        "sha256": f"{0:064d}",
        "revision": "",
        "quantized": False,
    }


def test_the_revision_of_a_model_from_the_hub_is_kept(tmp_path):
    chat = tiny_chat()
    save_chat(chat, tmp_path, replace(whole(chat), revision="0123abcd"), encoder=ENCODER)
    assert read_manifest(tmp_path)["language_model"]["revision"] == "0123abcd"


def test_the_shipped_folder_and_older_ones_load(tmp_path):
    """A manifest without the newer fields, as the first version wrote it."""
    chat = trained(tmp_path)

    def older(manifest):
        manifest["language_model"] = {k: manifest["language_model"][k] for k in ("part", "sha256")}

    tamper(tmp_path, MANIFEST, older)
    loaded, _ = load_chat_model(tmp_path, language_model=fresh(), trainable=True)
    assert torch.equal(logits_of(loaded), logits_of(chat))


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    chat = tiny_chat()
    with torch.no_grad():
        chat.projector.up.bias[0] = float("nan")
    with pytest.raises(EcgChatError, match=r"up\.bias isn't finite"):
        save_chat(chat, tmp_path, whole(chat), encoder=ENCODER)
    assert not (tmp_path / MANIFEST).exists()


def test_weights_of_unknown_origin_are_neither_saved_nor_loaded_onto(tmp_path):
    chat = tiny_chat()
    with pytest.raises(ParameterError, match="the encoder's sha256 is ''"):
        save_chat(chat, tmp_path / "one", whole(chat), encoder={"name": "x", "sha256": ""})
    with pytest.raises(ParameterError, match="the language model's sha256 is ''"):
        save_chat(chat, tmp_path / "one", replace(whole(chat), sha256=""), encoder=ENCODER)
    assert not (tmp_path / "one").exists()
    save_chat(chat, tmp_path, whole(chat), encoder=ENCODER)
    with pytest.raises(EcgChatError, match="this one is unknown"):
        load_chat_model(tmp_path, language_model=fresh(sha256=""))
    with pytest.raises(EcgChatError, match=r"the encoder abab.*this one is unknown"):
        load_chat_model(tmp_path, language_model=fresh(), encoder_sha256="")


def into(*keys, value):
    def change(content):
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (MANIFEST, into("sha256", "../../etc/passwd", value="0" * 64), "a file in sha256 is '../../etc/passwd'"),
        (MANIFEST, into("sha256", "/etc/passwd", value="0" * 64), "a file in sha256 is '/etc/passwd'"),
        (MANIFEST, into("sha256", "model.pkl", value="0" * 64), "a file in sha256 is 'model.pkl'"),
        (MANIFEST, into("sha256", PROJECTOR, value=7), "sha256 of projector"),
        (MANIFEST, into("sha256", value=[PROJECTOR]), "expected file names and hashes"),
        (MANIFEST, lambda m: m["sha256"].pop(ADAPTER_CONFIG) and None, "together"),
        (MANIFEST, into("projector", "width", value=10**12), "projector.width is '1000000000000'"),
        (MANIFEST, into("projector", "hidden", value=True), "projector.hidden is 'True'"),
        (MANIFEST, into("projector", "extra", value=1), "expected width, hidden, input_norm and places"),
        (MANIFEST, into("projector", "places", value=-1), "projector.places is '-1'"),
        (MANIFEST, into("projector", "places", value=ECG_TOKENS), r"place is missing, expected \(7, 32\)"),
        (MANIFEST, into("projector", "width", value=WIDTH + 1), r"norm.bias is \(24,\), expected \(25,\)"),
        (MANIFEST, into("projector", "hidden", value=HIDDEN * 2), "makes vectors of 64, but"),
        (MANIFEST, into("language_model", value="x"), "language_model is 'x'"),
        (MANIFEST, into("language_model", "sha256", value=""), "language_model.sha256 is ''"),
        (MANIFEST, into("encoder", "sha256", value=""), "encoder.sha256 is ''"),
        (MANIFEST, into("encoder", value={}), "encoder.sha256 is 'None'"),
        (MANIFEST, into("language_model", "part", value=None), "language_model.part"),
        (MANIFEST, into("template", value=["smollm2"]), "template is"),
        (MANIFEST, into("template", value="alpaca"), "unknown chat template 'alpaca'"),
        (MANIFEST, lambda m: [m], "a list, expected an object"),
        (PROJECTOR, lambda t: t | {"extra": torch.zeros(2)}, "extra is .2,., expected no such tensor"),
        (PROJECTOR, lambda t: {k: v for k, v in t.items() if k != "up.bias"}, "up.bias is missing"),
        (PROJECTOR, lambda t: t | {"up.bias": torch.full((HIDDEN,), float("inf"))}, "isn't made of finite"),
        (PROJECTOR, lambda t: t | {"up.bias": torch.zeros(HIDDEN, dtype=torch.int32)}, "isn't made of finite"),
        (ADAPTER, lambda t: t | {"base_model.model.model.embed_tokens.weight": torch.zeros(420, 32)}, "embed_tokens"),
        (ADAPTER, lambda t: dict(list(t.items())[:-1]), "1 adapters missing"),
        (ADAPTER, lambda t: {k: v.repeat(2, 1) if "A" in k else v.repeat(1, 2) for k, v in t.items()}, "of rank .4."),
        (ADAPTER, lambda t: {k.replace("layers.0", "layers.9"): v for k, v in t.items()}, "fit nowhere|doesn't fit"),
        (
            ADAPTER,
            lambda t: {k: v[:, :-1].contiguous() if "A" in k else v for k, v in t.items()},
            "doesn't fit this language model",
        ),
        (ADAPTER_CONFIG, into("r", value=10**9), "r=1000000000"),
        (ADAPTER_CONFIG, into("r", value=3), "of rank .2., expected 3"),
        (ADAPTER_CONFIG, into("target_modules", value="(a+)+$"), "target_modules="),
        (ADAPTER_CONFIG, into("target_modules", value=["q_proj.*"]), "target_modules="),
        (ADAPTER_CONFIG, into("megatron_core", value="os"), "megatron_core is 'os'"),
        (ADAPTER_CONFIG, into("init_lora_weights", value="pissa"), "init_lora_weights is 'pissa'"),
        (ADAPTER_CONFIG, into("modules_to_save", value=["embed_tokens"]), "modules_to_save is"),
        (ADAPTER_CONFIG, into("use_dora", value=True), "use_dora is 'True'"),
    ],
)
def test_a_hostile_folder_is_refused(tmp_path, name, change, message):
    trained(tmp_path)
    tamper(tmp_path, name, change)
    with pytest.raises(EcgChatError, match=message):
        load_chat_model(tmp_path, language_model=fresh(), trainable=True)


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"[" * 5_000_000, b'{"a":' * 100_000, b"null"])
@pytest.mark.parametrize("name", [MANIFEST, ADAPTER_CONFIG])
def test_damaged_json_is_refused(tmp_path, name, content):
    trained(tmp_path)
    (tmp_path / name).write_bytes(content)
    if name != MANIFEST:
        tamper(tmp_path, MANIFEST, into("sha256", name, value=sha256_of(tmp_path / name)))
    with pytest.raises(EcgChatError, match="not a readable"):
        load_chat_model(tmp_path, language_model=fresh())


def test_a_damaged_tensor_file_is_refused(tmp_path):
    trained(tmp_path)
    for content in (b"", b"\xff" * 64, (tmp_path / PROJECTOR).read_bytes()[:-8]):
        (tmp_path / PROJECTOR).write_bytes(content)
        tamper(tmp_path, MANIFEST, into("sha256", PROJECTOR, value=sha256_of(tmp_path / PROJECTOR)))
        with pytest.raises(EcgChatError, match="not a readable safetensors file"):
            load_chat_model(tmp_path, language_model=fresh())


def test_an_adapter_for_a_larger_model_is_refused(tmp_path):
    trained(tmp_path)
    with pytest.raises(EcgChatError, match=r"7 adapters missing|14 adapters missing"):
        load_chat_model(tmp_path, language_model=fresh(layers=3))


def test_a_second_save_replaces_the_first(tmp_path):
    chat = trained(tmp_path)
    plain = tiny_chat()
    save_chat(plain, tmp_path, whole(plain), encoder=ENCODER)
    assert set(read_manifest(tmp_path)["sha256"]) == {PROJECTOR}
    assert not (tmp_path / ADAPTER).exists()
    loaded, _ = load_chat_model(tmp_path, language_model=fresh())
    assert torch.equal(snapshot(loaded)["projector.up.weight"], snapshot(plain)["projector.up.weight"])
    assert chat.projector.hidden == plain.projector.hidden
