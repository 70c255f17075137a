"""How languages write: words, word errors, subtitles, and the ranges of their scripts."""
