"""Scores of a model: frozen features -> weighted sum over layers -> a small head -> accuracy."""
