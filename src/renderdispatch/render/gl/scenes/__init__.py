"""The scenes in GLSL that come with the library, each one a file in Shadertoy's conventions."""
