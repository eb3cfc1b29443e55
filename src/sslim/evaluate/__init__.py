"""Scores of a model: frozen features -> weighted sum over layers -> a small head -> accuracy."""

from sslim.evaluate.fbank import log_mel
from sslim.evaluate.probe import LabelledFeatures, ProbeScore, pooled_features, probe

__all__ = ["LabelledFeatures", "ProbeScore", "log_mel", "pooled_features", "probe"]
