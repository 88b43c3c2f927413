"""A job's directory: confined paths, files, quotas, uploads and removal."""
