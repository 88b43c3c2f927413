"""`make bench-scale`: what many agents and many jobs cost one router host."""
