"""What web frameworks mount."""
