"""The labelling room: people compare completions in a browser, and their votes become data."""
