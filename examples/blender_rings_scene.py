"""What runs in Blender for ``blender_rings.py``: it builds the scene once, then moves the rings for each frame."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import bpy


def arguments() -> argparse.Namespace:
    """Read what follows ``--``."""
    parser = argparse.ArgumentParser()
    for name in ("--features", "--params", "--frames"):
        parser.add_argument(name, type=Path)
    for name in ("--width", "--height", "--fps-num", "--fps-den", "--frame-count", "--first-frame"):
        parser.add_argument(name, type=int)
    return parser.parse_args(sys.argv[sys.argv.index("--") + 1 :])


def linear(colour: str) -> list[float]:
    """Return ``#rrggbb`` as Blender calculates with it."""
    shares = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]


def blended(colours: list[str], at: float) -> list[float]:
    """Return the colour at a place, from 0 (the first) to 1 (the last)."""
    place = at * (len(colours) - 1)
    first = min(int(place), len(colours) - 2) if len(colours) > 1 else 0
    pair = linear(colours[first]), linear(colours[min(first + 1, len(colours) - 1)])
    return [a + (b - a) * (place - first) for a, b in zip(*pair, strict=True)]


def shining(name: str, colour: list[float]) -> tuple[Any, Any]:
    """Return a material that sheds light of a colour, and the input for how much."""
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    nodes = material.node_tree.nodes
    nodes.clear()
    emission, output = nodes.new("ShaderNodeEmission"), nodes.new("ShaderNodeOutputMaterial")
    emission.inputs["Color"].default_value = (*colour, 1)
    material.node_tree.links.new(emission.outputs["Emission"], output.inputs["Surface"])
    return material, emission.inputs["Strength"]


def mirror() -> Any:
    """Return the material of the floor."""
    material = bpy.data.materials.new("mirror")
    material.use_nodes = True
    nodes = material.node_tree.nodes
    nodes.clear()
    gloss, output = nodes.new("ShaderNodeBsdfGlossy"), nodes.new("ShaderNodeOutputMaterial")
    gloss.inputs["Color"].default_value = (0.22, 0.24, 0.3, 1)
    gloss.inputs["Roughness"].default_value = 0  # nothing to be guessed, so few samples are clean
    material.node_tree.links.new(gloss.outputs["BSDF"], output.inputs["Surface"])
    return material


def main() -> None:
    """Draw all frames."""
    given = arguments()
    features, params = json.loads(given.features.read_text()), json.loads(given.params.read_text())
    fps = given.fps_num / given.fps_den

    for thing in list(bpy.data.objects):
        bpy.data.objects.remove(thing)
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.device = "CPU"
    scene.cycles.samples = params["samples"]
    scene.cycles.use_denoising = False  # Debian's Blender has no denoiser
    scene.cycles.max_bounces = 2
    scene.cycles.seed = 7
    scene.render.use_persistent_data = True
    scene.render.resolution_x, scene.render.resolution_y = given.width, given.height
    scene.render.resolution_percentage = 100
    scene.render.image_settings.file_format = "PNG"
    scene.render.image_settings.color_mode = "RGB"
    scene.view_settings.view_transform = "Standard"
    scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.002, 0.003, 0.01, 1)

    bpy.ops.mesh.primitive_plane_add(size=200)
    bpy.context.object.data.materials.append(mirror())
    count, bands = params["rings"], len(features["bands"][0])
    rings = []
    for number in range(count):
        bpy.ops.mesh.primitive_torus_add(
            major_radius=0.5 + 4 * number / count, minor_radius=0.04, major_segments=96, minor_segments=8
        )
        material, strength = shining(f"ring {number}", blended(params["colours"], number / max(count - 1, 1)))
        bpy.context.object.data.materials.append(material)
        bpy.ops.object.shade_smooth()
        rings.append((bpy.context.object, strength))
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.data.lens = 36 if given.width >= given.height else 24
    scene.collection.objects.link(camera)
    scene.camera = camera
    middle = bpy.data.objects.new("middle", None)
    middle.location = (0, 0, 0.7)
    scene.collection.objects.link(middle)
    follows = camera.constraints.new("TRACK_TO")
    follows.target = middle

    heights = [0.0] * count
    for frame in range(given.frame_count):
        for number, (ring, strength) in enumerate(rings):
            notes = features["bands"][frame][number * bands // count : (number + 1) * bands // count]
            heights[number] = max(max(notes, default=0), heights[number] - 1.6 / fps)
            ring.location.z = 0.12 + 2.2 * heights[number]
            tilt = 0.35 * heights[number] * math.sin(1.3 * frame / fps + number)
            ring.rotation_euler = (tilt, tilt / 2, 0)
            strength.default_value = 0.1 + 0.8 * heights[number] ** 2 + 0.25 * features["beat"][frame]
        if frame < given.first_frame:  # a preview: only the heights follow from what came before
            continue
        around = 0.25 * frame / fps
        camera.location = (9.5 * math.sin(around), -9.5 * math.cos(around), 3.6)
        scene.render.filepath = str(given.frames / f"{frame:06d}.png")
        bpy.ops.render.render(write_still=True)


main()
