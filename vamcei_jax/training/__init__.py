"""Training of one stage: the loop, its checkpoints, its log, and how it is stopped."""
