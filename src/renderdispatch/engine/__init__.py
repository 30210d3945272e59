"""How jobs move: the table of transitions, the one writer, dispatching, reconciling and the worker of a process."""
