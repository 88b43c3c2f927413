"""The queue of jobs that wait for an agent, without I/O: order, states, and what is stored and sent, when."""
