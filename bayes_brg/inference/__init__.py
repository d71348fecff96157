"""Ways to get a posterior."""
