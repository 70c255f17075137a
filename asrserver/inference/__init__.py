"""What runs in a worker: feed, audio, speech detection, features, engine. Never imports handlers or Tornado."""
