"""Every Redis command of the system.

gateway_side and worker_side have the commands of gateways and workers, over one Pipeline each; lease has what a thread
and the supervisor do with blocking clients; keys names everything in Redis, and scripts has what must be atomic.
"""
