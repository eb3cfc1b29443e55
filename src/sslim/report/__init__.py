"""Reads a run's files and a model's plan; writes what people look at. Trains and decides nothing."""
