"""The agent's links to its routers, in either direction."""
