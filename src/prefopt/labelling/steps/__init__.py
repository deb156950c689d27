"""What each step of `migrations` does; a step that a database may have taken never changes."""
