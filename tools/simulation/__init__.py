"""A simulation of workers and their streams, fed with what the parts cost."""
