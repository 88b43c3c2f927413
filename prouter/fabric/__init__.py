"""The fabric: the protocol between router and agents, free of sockets and clocks.

Frames, sessions, calls and streams as state machines that take frames and the current time in and give frames and
events out. `docs/fabric.md` specifies the protocol; `prouter.transport` carries it over ZeroMQ.
"""
