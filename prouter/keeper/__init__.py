"""The keeper: the parent process of an agent's jobs. It outlives the agent, and ends the jobs if no agent returns.

It uses the standard library only and one thread, and sleeps while nothing happens. The agent's local runner starts it
(`prouter.runners.local.runner`); docs/decisions/keeper.md says why there is such a process.
"""
