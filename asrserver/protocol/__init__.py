"""What clients and servers say to each other. No I/O."""
