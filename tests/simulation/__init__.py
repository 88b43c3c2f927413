"""Router, workers and agents on a virtual network and clock: the real state machines, thousands of random lives."""
