"""The job table on disk, and its restoration at the next start."""
