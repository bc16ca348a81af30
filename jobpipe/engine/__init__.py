"""What makes jobs move."""
