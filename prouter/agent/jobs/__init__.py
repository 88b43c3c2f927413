"""The life of a job on its agent: creation, start, end, removal."""
