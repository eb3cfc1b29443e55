"""Gates, budget and surgery: what is closed, what it must add up to, and the cut itself."""
