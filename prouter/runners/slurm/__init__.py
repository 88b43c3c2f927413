"""The runner for Slurm: every job is a batch job of an existing cluster.

docs/decisions/slurm.md says how it works and why. `prouter.runners.slurm.node` is the part that runs on the allocated
node, with the standard library alone.
"""
