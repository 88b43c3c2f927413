"""Relays: the agent's ends of streams, to a job's server and to the files, archives and logs of its sandbox."""
