"""The multimodal model: projector, splicing, label masking, the two training stages, generation."""
