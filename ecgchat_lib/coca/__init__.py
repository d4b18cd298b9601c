"""ECG-CoCa: an ECG encoder, a report encoder and a caption decoder trained on one another.

It holds the models, the two losses, the training loop, checkpoints and the mini weights; it holds no labels and no
scores of quality (`evaluate`). Import from the modules (`ecgchat_lib.coca.model`, …), which need torch and open_clip.
Taught in: 05–07.
"""
