"""What `prouter run` does: one job from its creation to its removal."""
