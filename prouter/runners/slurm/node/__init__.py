"""The part of the Slurm runner that runs on the allocated node, with the standard library alone.

The batch script starts it. It starts a keeper (`prouter.keeper`), which runs the job as it does on the agent's machine,
and connects to the agent: one connection for requests and events, and one for each connection to the job's servers.
The agent may be away at any time: what must not be lost is in files (`job_files`).
"""
