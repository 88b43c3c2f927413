"""The broker's sockets: listeners, connections of agents and workers, limits before authentication."""
