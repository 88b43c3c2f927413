"""The fabric over unix sockets with ZMTP on the process's own event loop."""
