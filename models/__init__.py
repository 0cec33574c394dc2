"""What is built on minitorch: architectures, training recipes, inference and the command line."""
