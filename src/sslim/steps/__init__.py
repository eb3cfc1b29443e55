"""A run as a list of steps: joint, decide, recover, save; each leaves a product to go on from."""
