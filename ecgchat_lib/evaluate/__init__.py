"""Retrieval, zero-shot, probe and text metrics, each with its interval."""
