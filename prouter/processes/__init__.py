"""Other processes, as /proc shows them: trees, limits, and how a whole tree is halted."""
