"""Cards: what is known of each public data set, and how its files are read."""
