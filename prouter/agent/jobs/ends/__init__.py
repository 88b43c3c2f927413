"""The end of jobs, what ends them, and their removal."""
