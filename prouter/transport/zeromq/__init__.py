"""The fabric over ZeroMQ's own sockets (pyzmq): what dials over tcp, and an agent's listener."""
