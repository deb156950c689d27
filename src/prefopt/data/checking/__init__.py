"""What is wrong with preference data, found while it streams: `prefopt check`."""
