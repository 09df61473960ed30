"""Does decimation keep the shape?"""

from __future__ import annotations

import numpy as np

from envs import meshes
from envs.compose import TRIANGLES
from envs.scene import load_scene


def _sphere(rings: int) -> tuple[np.ndarray, np.ndarray]:
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, 2 * rings), indexing="ij")
    vertices = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1).reshape(-1, 3)
    corner = (np.arange(rings - 1)[:, None] * 2 * rings + np.arange(2 * rings - 1)).reshape(-1)
    lower = np.stack([corner, corner + 2 * rings, corner + 1], 1)
    upper = np.stack([corner + 1, corner + 2 * rings, corner + 2 * rings + 1], 1)
    return vertices, np.concatenate([lower, upper]).astype(np.int64)


def test_sphere_stays_round_and_outward() -> None:
    vertices, faces = _sphere(60)
    small, triangles = meshes.decimate(vertices, faces, 500)
    assert 200 < len(triangles) <= 500
    assert len(np.unique(triangles)) == len(small)
    radius = np.linalg.norm(small, axis=1)
    assert radius.min() > 0.97 and radius.max() < 1.03
    a, b, c = (small[triangles[:, k]] for k in range(3))
    outward = np.einsum("fk,fk->f", np.cross(b - a, c - a), a + b + c)
    assert (outward > 0).mean() > 0.98


def test_a_cube_keeps_its_corners() -> None:
    """Plain clustering would round them; the quadrics put each vertex back on its planes."""
    n = 24
    u, v = np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, n), indexing="ij")
    sides, faces = [], []
    corner = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).reshape(-1)
    for axis in range(3):
        for value in (0.0, 1.0):
            halves = [[corner, corner + n, corner + 1], [corner + 1, corner + n, corner + n + 1]]
            faces += [np.stack(half, 1) + n * n * len(sides) for half in halves]
            sides.append(np.insert(np.stack([u, v], -1).reshape(-1, 2), axis, value, axis=1))
    small, _ = meshes.decimate(np.concatenate(sides), np.concatenate(faces).astype(np.int64), 150)
    for corner_point in np.ndindex(2, 2, 2):
        assert np.linalg.norm(small - np.array(corner_point), axis=1).min() < 0.03


def test_few_triangles_are_left_alone() -> None:
    vertices, faces = _sphere(5)
    small, triangles = meshes.decimate(vertices, faces, 1000)
    assert small is vertices and triangles is faces


def test_the_lean_robot_has_few_triangles_and_no_collision_mesh_is_drawn() -> None:
    model = load_scene("franka_panda", "pick45", "real", "lean").model
    drawn = [
        int(model.mesh_facenum[model.geom_dataid[g]])
        for g in range(model.ngeom)
        if model.geom_group[g] == 1 and model.geom_dataid[g] >= 0
    ]
    assert 3000 < sum(drawn) <= TRIANGLES["lean"] + 200
    hulls = [
        int(model.mesh_vertnum[model.geom_dataid[g]])
        for g in range(model.ngeom)
        if model.geom_group[g] == 3 and model.geom_dataid[g] >= 0
    ]
    assert len(hulls) == 11 and max(hulls) <= 64
