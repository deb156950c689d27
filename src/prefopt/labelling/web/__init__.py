"""The web app of the labelling room: pages that work without JavaScript, and JSON."""
