"""ZMTP on the process's own event loop: the broker's listeners over tcp and unix sockets, and who dials the latter."""
