"""Every Redis command of the system.

gateway_side and worker_side have the commands of gateways and workers, over one Pipeline each; lease has what a thread
and the supervisor do with blocking clients. keys names everything in Redis. What must be atomic is a Lua script: see
session_scripts, audio_scripts, event_scripts and task_scripts.
"""
