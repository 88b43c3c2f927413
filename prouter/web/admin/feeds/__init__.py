"""Responses that continue: server-sent events of jobs, and logs that are followed."""
