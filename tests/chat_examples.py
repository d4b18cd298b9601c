"""Training examples for the tiny chat model, shared by the tests of training, checkpoints and export."""

from ecgchat_lib.chat.language_model import LanguageModel
from ecgchat_lib.chat.template import encode, pack
from ecgchat_lib.chat.train import Example


def examples(chat, n=4):
    answers = ["Yes.", "No."]
    out = []
    for k in range(n):
        turns = [encode([("<ecg>\nIs it normal?", answers[k % 2])], chat.tokenizer, chat.template)]
        turns.append(encode([("<ecg>\nIs it odd?", answers[1 - k % 2])], chat.tokenizer, chat.template))
        out.append(Example(pack(turns) if k % 2 else turns[0], (k,)))
    return out


def whole(chat, seed=0):
    return LanguageModel(chat.language_model, chat.tokenizer, "language-model", f"{seed:064d}", False)


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}
