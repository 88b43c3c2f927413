"""What the commands that use a router over HTTP share: which router, output, names of jobs, errors and exit codes."""
