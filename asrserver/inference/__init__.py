"""What runs in a worker: consumer, speech detection, features, engine. Never imports gateway, handlers or Tornado."""
