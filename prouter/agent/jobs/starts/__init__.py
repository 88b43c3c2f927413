"""From a start request to a process: environment, templates, limits, and the job's server."""
