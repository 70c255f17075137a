"""One module an interface: each translates between its protocol and the gateway, none decides."""
