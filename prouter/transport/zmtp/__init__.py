"""ZMTP on the process's own event loop: the broker's listeners, and both ends of connections over unix sockets."""
