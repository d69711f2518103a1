"""Answers about decisions: why a flow goes where it goes, what a change would do, how a scheduler
behaves. Asking changes nothing."""
