"""One gateway process without its web server: sessions, admission, backlog, persistence, archive."""
