"""Relays: the agent's ends of streams; to a job's socket, to files, archives and logs of its sandbox."""
