"""What outlives a process: descriptors and saved sessions."""
