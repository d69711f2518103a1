"""Long and hard trials in the lab: `soak` and `faults`. docs/testing.md says how to run them."""
