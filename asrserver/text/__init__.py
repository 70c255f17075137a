"""How languages write: words, word errors, subtitles."""
