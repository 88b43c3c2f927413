"""Jobs and agents as people read them."""
