"""The broker: owner of the agent links and the job table, and the switch for bytes between workers and agents.

All decisions live in state machines that take frames and the current time in and give frames out (`core.Broker` and
what it is made of); `server` is the only module with sockets, clocks and processes in it.
"""
