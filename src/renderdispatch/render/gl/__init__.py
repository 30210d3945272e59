"""Scenes that OpenGL draws, in GLSL as Shadertoy has it.

`shader` reads a file, `program` makes a program of each of its passes, `context` opens a device, `artist` draws, and
`renderer` is what jobs name.
"""
