"""Build images for Modal in which orders can be carried out; see `renderdispatch.modal_app.image`."""

from renderdispatch.modal_app.image import base_image, with_source

__all__ = ["base_image", "with_source"]
