"""Publish results, so far to the local archive tree."""
