"""The one place that knows the families: loading, hidden states, units, saving, foreign formats."""
