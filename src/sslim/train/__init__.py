"""The one training loop and its schedule. Knows neither pruning nor transformers."""
