"""Reading examples from folders and files, and the order in which they come."""
