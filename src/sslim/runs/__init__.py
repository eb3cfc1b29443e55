"""What a run is on disk: its folder, its record, its state, its checkpoints, its audio."""
