"""Tools of every process: limits and memory from the operating system, waits in the event loop."""
