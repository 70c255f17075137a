"""The network interfaces of a gateway, on Tornado: REST and WebSocket. Handlers translate, the gateway decides."""
