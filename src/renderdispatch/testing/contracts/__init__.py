"""What must every implementation of a protocol pass?

One suite for each protocol. Subclass it, give one fixture, and every promise is tested.
"""
