"""What clients, gateways and workers say to each other: events, options, messages, codes, WebSocket frames."""
