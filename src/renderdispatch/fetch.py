"""Fetch audio from URLs that strangers gave, under guard; see `renderdispatch.plumbing.fetch`."""

from renderdispatch.plumbing.fetch import GuardedFetcher, is_public

__all__ = ["GuardedFetcher", "is_public"]
