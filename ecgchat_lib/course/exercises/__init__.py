"""The checks of every exercise, one module a notebook, each with wrong answers that must fail."""
