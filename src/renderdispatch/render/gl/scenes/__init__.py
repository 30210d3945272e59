"""The scenes in GLSL that come with the library: one file each, in Shadertoy's conventions."""
