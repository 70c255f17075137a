"""One gateway process without its web server: admission, intake, sessions, persistence, recordings, health."""
