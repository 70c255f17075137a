"""The parent of gateways and workers: spawn, watch, replace, drain."""
