"""The router's own pages for people, which no page of a job can read."""
