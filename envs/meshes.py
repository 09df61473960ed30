"""How does a CAD mesh become one with few enough triangles for a software renderer?

Vertex clustering with error quadrics (Lindstrom 2000, "Out-of-core simplification of large polygonal models"): vertices
in one grid cell become one, placed where it lies closest to the planes of the triangles it came from. One vectorised
pass, so no mesh library is needed; each robot link keeps its silhouette and its sharp edges.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_RELATIVE_CUTOFF = 0.05  # eigenvalues below this share of the largest are flat directions: keep the cell's mean there


def decimate(vertices: Floats, faces: Ints, max_triangles: int) -> tuple[Floats, Ints]:
    """Return vertices (V, 3) and faces (F, 3) with at most `max_triangles`, by the finest grid that allows it."""
    if len(faces) <= max_triangles:
        return vertices, faces
    extent = float(np.ptp(vertices, axis=0).max())
    fine, coarse = extent / 400, extent / 2
    for _ in range(14):
        cell = float(np.sqrt(fine * coarse))
        if len(cluster(vertices, faces, cell)[1]) > max_triangles:
            fine = cell
        else:
            coarse = cell
    return cluster(vertices, faces, coarse)


def cluster(vertices: Floats, faces: Ints, cell: float) -> tuple[Floats, Ints]:
    """Merge the vertices of each grid cell of size `cell` (m); triangles that collapse are dropped."""
    grid = np.floor((vertices - vertices.min(axis=0)) / cell).astype(np.int64)
    label = _group(grid)[1]
    corners = label[faces]  # (F, 3) cells
    kept = (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]) & (corners[:, 0] != corners[:, 2])
    corners = corners[kept]
    start = corners.argmin(axis=1)  # smallest corner first, so that equal triangles compare equal
    order = (start[:, None] + np.arange(3)) % 3
    triangles = _group(np.take_along_axis(corners, order, axis=1))[0]
    used, renumbered = np.unique(triangles, return_inverse=True)
    return _best_positions(vertices, faces, label)[used], renumbered.reshape(-1, 3)


def _group(rows: Ints) -> tuple[Ints, Ints]:
    """Return the distinct rows of non-negative integers (N, 3), and for each row which of them it is."""
    base = int(rows.max(initial=0)) + 1
    assert base < 2**21, "three numbers must fit one 64-bit key"
    key = (rows[:, 0] * base + rows[:, 1]) * base + rows[:, 2]
    _, first, label = np.unique(key, return_index=True, return_inverse=True)
    return rows[first], label.reshape(-1)


def _best_positions(vertices: Floats, faces: Ints, label: Ints) -> Floats:
    """Return for each cell the point of least squared distance to its triangles' planes, area weighted. (C, 3)"""
    cells = int(label.max()) + 1
    count = np.bincount(label, minlength=cells)
    mean = np.stack([np.bincount(label, vertices[:, k], cells) for k in range(3)], axis=1) / count[:, None]
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)  # (F, 3), length twice the area
    quadric, pull = np.zeros((cells, 3, 3)), np.zeros((cells, 3))
    for corner in range(3):
        cell = label[faces[:, corner]]
        offset = np.einsum("fk,fk->f", normal, a - mean[cell])  # plane distance from the cell's mean
        np.add.at(quadric, cell, normal[:, :, None] * normal[:, None, :])
        np.add.at(pull, cell, normal * offset[:, None])
    values, vectors = np.linalg.eigh(quadric)
    limit = _RELATIVE_CUTOFF * np.maximum(values[:, -1:], 1e-30)
    inverse = np.where(values > limit, 1.0 / np.where(values > limit, values, 1.0), 0.0)
    step = np.einsum("cij,cj,ckj,ck->ci", vectors, inverse, vectors, pull)
    reach = np.linalg.norm(step, axis=1, keepdims=True)
    size = np.zeros(cells)
    np.maximum.at(size, label, np.linalg.norm(vertices - mean[label], axis=1))
    return mean + step * np.minimum(1.0, size[:, None] / np.maximum(reach, 1e-12))  # never outside the cell's points
