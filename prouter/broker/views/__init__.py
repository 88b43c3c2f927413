"""What the broker shows to workers: jobs, connections, changes, bridges."""
