"""Distillation: which layers are compared, how, and the tasks that own models and losses."""
