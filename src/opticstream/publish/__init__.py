"""Where results go: today the local archive tree; the networked targets come behind the same functions."""
