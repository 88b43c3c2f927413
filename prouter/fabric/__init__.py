"""The fabric: the protocol between router and agents, without sockets and clocks.

Frames, sessions, calls and streams are state machines. They take frames and the current time, and return frames to send
and events. `docs/fabric.md` specifies the protocol; `prouter.transport` carries it over ZeroMQ.
"""
