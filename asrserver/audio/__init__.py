"""Bytes of any kind to 16 kHz samples, whole or as they come. Known to gateway, worker and clients alike."""
