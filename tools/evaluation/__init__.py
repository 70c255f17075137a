"""Measuring what is recognised: a corpus, its conditions, how it is recognised, and how that is scored."""
