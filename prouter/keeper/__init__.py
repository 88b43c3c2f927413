"""The keeper: the parent process of an agent's jobs, which outlives the agent and ends them if it does not return.

Standard library only, single-threaded, sleeping when nothing happens. It is a process of its own (`__main__`), started
and spoken to by `prouter.agent.jobs.runner`; see docs/decisions/keeper.md.
"""
