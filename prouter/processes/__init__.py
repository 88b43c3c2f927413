"""What /proc says about processes, their limits, and how a whole tree of them is halted."""
