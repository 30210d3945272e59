"""One of each small machine: the network, stopping, retrying, files, fork safety, errors."""
