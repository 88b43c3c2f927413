"""The queue of jobs that wait for an agent: without I/O (order, states, what is stored and sent when), and at work."""
