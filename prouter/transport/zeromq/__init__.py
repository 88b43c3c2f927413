"""The fabric over ZeroMQ's own sockets (pyzmq), for tcp between machines."""
