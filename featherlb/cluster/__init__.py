"""Several nodes: what they tell one another, and the process that does it."""
