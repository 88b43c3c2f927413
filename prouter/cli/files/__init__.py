"""Commands about files of jobs."""
