"""The one training loop, its schedule and its checkpoints. Knows neither pruning nor transformers."""
