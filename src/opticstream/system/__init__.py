"""What the operating system and its file systems offer, and how to do without what one of them lacks."""
