"""The backends of a service, and which one gets a new flow."""
