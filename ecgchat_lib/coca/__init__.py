"""ECG-CoCa: ECG encoder, report encoder, caption decoder, losses, training and checkpoints."""
