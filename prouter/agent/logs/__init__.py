"""Reading and following of jobs' stdout and stderr."""
