"""Responses of the router's own, in place of a job's."""
