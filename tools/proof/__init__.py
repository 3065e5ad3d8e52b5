"""Whether the results hold, and how fast they come."""
