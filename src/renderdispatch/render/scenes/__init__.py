"""The scenes that ship, one a module; `renderdispatch.render` makes their renderers.

They stand in a package of their own: a module ``render.bars`` would take the place of the renderer ``render.bars`` as
soon as it was imported.
"""
