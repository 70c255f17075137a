"""Text in many languages: words, word errors, subtitles, and the Unicode ranges of scripts."""
