"""Training: arguments, data, optimiser and the loop that can be killed and goes on as if it had not been."""
