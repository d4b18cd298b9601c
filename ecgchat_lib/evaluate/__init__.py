"""How good an embedding is: retrieval in both directions, zero-shot classes by prompts, linear probes, intervals.

Everything here reads numbers (similarities, scores, labels) and never a model's insides. Taught in: 08.
"""
