"""What an agent knows of its jobs, and what they take of it."""
