"""Makes transformers' Auto classes know our models; see `families.register`."""

from __future__ import annotations

from sslim.backbone.families import register

__all__ = ["register"]
