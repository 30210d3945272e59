"""What must every implementation of a protocol pass? A suite for each: subclass it, give one fixture, be tested."""
