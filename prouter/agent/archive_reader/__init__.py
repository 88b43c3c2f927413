"""The process that reads archives with libarchive for the agent, so that no archive can crash or bloat the agent.

It runs isolated and without site packages, so it imports the standard library only.
"""
