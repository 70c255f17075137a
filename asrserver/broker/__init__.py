"""Every Redis command: keys, scripts, pipeline, leases, quotas, subscription."""
