"""The simulation: the real state machines of router, workers and agents, on a virtual network and a virtual clock."""
