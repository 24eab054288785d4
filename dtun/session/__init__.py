"""What both ends of a session share."""
