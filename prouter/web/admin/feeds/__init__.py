"""Answers that go on: server-sent events of jobs, and logs that are followed."""
