"""The backends of a service, and the choice of one for a new flow."""
