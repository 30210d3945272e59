"""The scenes that ship, one per module; `renderdispatch.render` makes their renderers.

They are in a package of their own: importing a module ``render.bars`` would replace the renderer ``render.bars``.
"""
