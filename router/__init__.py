"""The stateless process: serves the gateway over HTTP and gRPC, and speaks to the scheduler."""
