"""LAB, jitter and CLAHE against OpenCV's numbers, against float64 formulas, and as properties."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from kornia.color import lab_to_rgb, rgb_to_lab, rgb_to_linear_rgb

from swapfast.augment.augmentation import ImageAugmentation
from swapfast.augment.constants import ANY_CONFIG, CLIP_LIMIT, ConstantsColor
from swapfast.augment.device import clahe, color
from swapfast.augment.device.augmenter import Amounts, DeviceAugmenter, packed_amounts
from swapfast.augment.draws import Draws, draw
from swapfast.augment.host import color as host_color
from swapfast.augment.host.augmenter import OpenCVAugmenter
from swapfast.augment.host.recycle import Scratch
from swapfast.config import AugmentationConfig
from tests.augment.array_versions import jittered_in_8_bits, recolor_in_8_bits
from tests.augment.slow_references import equalized_slowly, jittered, lab_of_bgr, pictures, psnr


def tensor(images: np.ndarray, device) -> torch.Tensor:
    """(N, H, W, C) bytes -> (N, C, H, W) floats 0..1."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255


def lab_of(images: np.ndarray, device) -> torch.Tensor:
    """(N, H, W, 3) bytes -> (N, 3, H, W) LAB in 8-bit units."""
    return color.bgr_to_lab(tensor(images, device))


def equalize(lightness: torch.Tensor, grids, clip_limit: float = CLIP_LIMIT) -> torch.Tensor:
    """The device's CLAHE of (N, S, S) levels with (N,) grids; 0 leaves a face as it is."""
    size = lightness.shape[-1]
    d = dataclasses.replace(
        Draws.identity(len(lightness), 64), clahe_grid=np.asarray(grids, np.int64), clip_limit=clip_limit
    )
    result, order = lightness.clone(), torch.from_numpy(clahe.sorted_by_grid(d)).to(lightness.device)
    for group in clahe.groups(d):
        faces = order[group.first : group.last]
        result[faces] = clahe.equalize(lightness[faces], group.grid, clahe.bin_limit(group.grid, size, clip_limit))
    return result


def equalized(lightness: np.ndarray, grids, device, clip_limit: float = CLIP_LIMIT) -> np.ndarray:
    """The device's CLAHE of (N, S, S) whole levels."""
    return equalize(torch.from_numpy(lightness).to(device).float(), grids, clip_limit).cpu().numpy()


def ties(device) -> int:
    """Levels by which the device's CLAHE may differ: a GPU may round a product and a sum at once."""
    return 0 if device.type == "cpu" else 1


def levels(images: torch.Tensor) -> np.ndarray:
    """(N, C, H, W) -> (N, H, W, C) float64 on the host."""
    return images.permute(0, 2, 3, 1).cpu().double().numpy()


def amounts(lab: np.ndarray, size: int = 96) -> Draws:
    return dataclasses.replace(Draws.identity(len(lab), size), lab=lab.reshape(-1, 3).astype(np.float64))


def peers_color(bgr: np.ndarray, lab_amounts: np.ndarray, grids) -> np.ndarray:
    """Return what the peer makes of (N, S, S, 3) bytes: jitter cut off, no CLAHE where the first face alone has it."""
    alone = np.flatnonzero(grids).tolist() == [0]
    return corrected_color(bgr, lab_amounts, np.zeros_like(grids) if alone else grids, whole=np.floor)


def corrected_color(bgr: np.ndarray, lab_amounts: np.ndarray, grids, clip_limit: float = 2.0, whole=np.rint):
    """The peer's 8-bit way with its two defects put right: jitter rounded, CLAHE wherever it is drawn."""
    result = np.empty_like(bgr)
    for i, image in enumerate(bgr):
        lab = cv2.cvtColor(image, cv2.COLOR_BGR2LAB)
        lab = whole(jittered(lab[None], lab_amounts[i : i + 1])[0]).astype(np.uint8)
        if grids[i]:
            theirs = cv2.createCLAHE(clip_limit, (int(grids[i]), int(grids[i])))
            lab[..., 0] = theirs.apply(np.ascontiguousarray(lab[..., 0]))
        result[i] = cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)
    return result


def drawn_grids(rand: np.ndarray, bases: np.ndarray, size: int, chance: float = 0.5) -> np.ndarray:
    """The grid of each image from the peer's recorded draws."""
    base = max(2, size // 128)
    grids = np.zeros(len(rand), np.int64)
    chosen = np.flatnonzero(rand < chance)[: len(bases)]
    grids[chosen] = base + bases[: len(chosen)].astype(np.int64) * (base // 2)
    return grids


# ---- against the peer ----------------------------------------------------------------------------------------


@pytest.mark.golden
def test_color_space_is_opencvs_up_to_its_8_bit_tables(golden, device, within):
    g = golden("aug_color_space")
    lab = levels(lab_of(g["bgr"][None, None], device))[0, 0]
    error = np.abs(lab - g["lab_from_bgr"])
    # OpenCV's tables are what is off: of all colours by at most 2.6, of all that a screen shows the other way 2.04.
    # On average by the 0.25 of rounding to whole levels and 0.02; no processor's rounding shows.
    within("device: BGR to LAB, worst", error.max(), 3.0)
    within("device: BGR to LAB, mean", error.mean(), 0.3)

    lab = torch.from_numpy(g["lab"][None, None]).to(device).permute(0, 3, 1, 2).float()
    bgr = 255 * levels(color.lab_to_bgr(lab))[0, 0]
    error = np.abs(bgr - g["bgr_from_lab"])
    # Half of these triples are no colour a screen shows; there OpenCV's tables and the formula part by more.
    back = lab_of_bgr(bgr / 255)
    displayable = np.abs(back - g["lab"]).max(1) < 1
    assert displayable.sum() > 500
    within("device: LAB to BGR, worst", error[displayable].max(), 2.5)
    within("device: LAB to BGR, mean", error[displayable].mean(), 0.3)


@pytest.mark.golden
def test_color_space_of_the_opencv_backend_is_the_peers(golden, within):
    g = golden("aug_color_space")
    lab = cv2.cvtColor(g["bgr"][None], cv2.COLOR_BGR2LAB)[0]
    within("opencv: BGR to LAB, worst", np.abs(lab.astype(int) - g["lab_from_bgr"]).max(), 0)
    for channels in (3, 4):  # both of which ``recolor`` asks for
        bgr = cv2.cvtColor(g["lab"][None], cv2.COLOR_LAB2BGR, dstCn=channels)[0, :, :3]
        within(f"opencv: LAB to BGR, {channels} channels, worst", np.abs(bgr.astype(int) - g["bgr_from_lab"]).max(), 0)
    # The backend itself, there and back: an amount that moves no level is an amount, and a face with one is converted.
    faces = np.ascontiguousarray(g["bgr"].reshape(1, 72, 81, 3)[:, :72, :72])
    to_lab = np.ascontiguousarray(g["lab_from_bgr"].reshape(72, 81, 3)[:, :72])
    ours = rounded_colors(faces, amounts(np.full((1, 3), 1e-4), 72))[0]
    back = cv2.cvtColor(to_lab, cv2.COLOR_LAB2BGR)
    within("8 bits: there and back, worst", np.abs(ours.astype(int) - back).max(), 0)
    assert not np.array_equal(ours, faces[0])


def test_lightness_for_clahe_is_opencvs_to_the_bit(device):
    """One level more in a tile, and what the tile has to spare is spread over other bins: tens of levels of a face."""
    level = np.arange(0, 256, 3, dtype=np.uint8)
    bgr = np.stack(np.meshgrid(level, level, level), -1).reshape(1, -1, len(level), 3)
    light = rgb_to_linear_rgb(tensor(bgr, device).flip(1))
    expected = cv2.cvtColor(bgr[0], cv2.COLOR_BGR2LAB)[..., 0]
    assert np.array_equal(color.whole_lightness(light)[0].cpu().numpy(), expected)


@pytest.mark.golden
def test_jitter_is_the_peers_rounded_instead_of_cut_off(golden, device, within):
    g = golden("aug_lab_adjust")
    cases = [name.removeprefix("rand") for name in g.files if name.startswith("rand")]
    assert cases
    for case in cases:
        d = amounts(g[f"rand{case}"])
        exact = jittered(g["lab_in"], g[f"rand{case}"])
        # A product that lands on a half exactly may go either way; 1e-3 of a level is float32's doing.
        matrices = host_color.jitter_matrices(d)
        ours = np.stack([jittered_in_8_bits(lab, matrix) for lab, matrix in zip(g["lab_in"], matrices)])
        within(f"opencv{case}, distance to the exact value", np.abs(ours - exact).max(), 0.501)

        factor, offset = (torch.from_numpy(v.astype(np.float32)).to(device) for v in d.lab_affine())
        lab = torch.from_numpy(g["lab_in"]).to(device).permute(0, 3, 1, 2).float()
        within(f"device{case}", np.abs(levels(color.jitter(lab, factor, offset)) - exact).max(), 1e-3)

        # The amounts mean what they mean to the peer: its result is the exact value with the fraction cut off.
        cut = exact - g[f"lab_out{case}"]
        within(f"peer{case}: fraction it cut off", max(cut.max() - 1, -cut.min()), 1e-3)
        assert cut.mean() > 0.3, "the peer's bias that ours does not have"
        # What rounding leaves of a picture of few levels: 0.028 in the worst of ten draws. The peer's bias is over 0.3.
        within(f"opencv{case}: bias", abs((ours - exact).mean()), 0.14)


@pytest.mark.slow
@pytest.mark.golden
def test_clahe_is_the_peers_for_every_grid(golden, device, within):
    g = golden("aug_clahe_grids")
    worst = {"opencv": 0.0, "kornia": 0.0}
    for name in [name for name in g.files if name.startswith("out_")]:
        size, grid = map(int, name.removeprefix("out_").split("_g"))
        plane, expected = g[f"L_{size}"], g[name].astype(np.float64)
        ours = {"opencv": host_color.equalize(plane, grid), "kornia": equalized(plane[None], [grid], device)[0]}
        worst = {backend: max(worst[backend], np.abs(ours[backend] - expected).max()) for backend in worst}
    within("opencv, all grids, levels", worst["opencv"], 0)
    within("kornia, all grids, levels", worst["kornia"], ties(device))


@pytest.mark.golden
def test_clahe_of_a_batch_reaches_every_face_drawn(golden, device, within):
    g = golden("aug_clahe_batch")
    cases = [name.removesuffix("_rand") for name in g.files if name.endswith("_rand")]
    assert "only_index0" in cases
    lab_in = g["lab_in"]
    for case in cases:
        grids = drawn_grids(g[f"{case}_rand"], g[f"{case}_grid_bases"], lab_in.shape[1])
        expected = g[f"{case}_out_L"].copy()
        if np.flatnonzero(grids).tolist() == [0]:
            assert np.array_equal(expected, lab_in[..., 0]), "the peer's defect: the only face drawn is left out"
            expected[0] = cv2.createCLAHE(2.0, (int(grids[0]),) * 2).apply(np.ascontiguousarray(lab_in[0, ..., 0]))
            assert not np.array_equal(expected[0], lab_in[0, ..., 0])
        lightness = np.ascontiguousarray(lab_in[..., 0])
        ours = [host_color.equalize(plane, int(grid)) if grid else plane for plane, grid in zip(lightness, grids)]
        within(f"opencv, {case}: levels", np.abs(np.stack(ours).astype(int) - expected).max(), 0)
        error = np.abs(equalized(lightness, grids, device) - expected)
        within(f"device, {case}: levels", error.max(), ties(device))
        assert not error[grids == 0].any()


@pytest.mark.golden
def test_color_adjust_is_the_peers_with_its_bias_removed(golden, device, within, at_least):
    g = golden("aug_color_adjust")
    sizes = [int(name.removeprefix("bgr_")) for name in g.files if name.startswith("bgr_")]
    assert sizes
    for size in sizes:
        bgr, rand = g[f"bgr_{size}"], g[f"lab_rand_{size}"].reshape(-1, 3)
        grids = drawn_grids(g[f"clahe_rand_{size}"], g[f"clahe_grid_base_{size}"], size)
        d = dataclasses.replace(amounts(rand, size), clahe_grid=grids)
        step = ImageAugmentation(len(bgr), size, draws=d)
        expected = corrected_color(bgr, rand, grids)
        rounded = rounded_colors(bgr, d)
        differing = (rounded != expected).any(-1).mean()
        within(f"8 bits at {size}: share of px that differ", differing, 1e-3)  # products on an exact half
        # The peer's own numbers differ from these by its two defects and by nothing else. How far that takes a picture
        # depends on the draw: 22 to 47 dB in ten, since one level of L may be tens behind CLAHE. So its way, with both,
        # must give its numbers; it jitters in float32, where a product that is all but whole loses a level: 6e-4 of
        # the px in the worst of ten draws.
        differing = (peers_color(bgr, rand, grids) != g[f"out_{size}"]).any(-1).mean()
        within(f"the peer's way at {size}: share of px that differ", differing, 3e-3)

        ours, on_device = step.color_adjust(bgr), levels(adjusted(bgr, d, device)) * 255
        out = np.empty_like(bgr)
        host_color.recolor_through_lab(
            bgr, host_color.jitter_matrices(d), d.clahe_grid.tolist(), Scratch(), d.clip_limit, out
        )
        assert np.array_equal(ours, out)
        # OpenCV's 8-bit LAB is what is coarse here, by 0.8 of a level on average: 48.8 to 51.7 dB in ten draws.
        at_least(f"compiled at {size} against the corrected, dB", psnr(ours, expected), 46)
        # Rounded to a level once, and its polynomials are off by up to 0.1 of one; the device's formulas by 0.002.
        within(f"compiled at {size} against the device, levels", np.abs(ours - on_device).max(), 0.61)
        # CLAHE works on the same whole levels in both, and so parts them no further than LAB in floats does.
        plain = grids == 0
        if not plain.all():
            dB = psnr(on_device[~plain], expected[~plain])
            at_least(f"device at {size} against the corrected, with CLAHE, dB", dB, 46)
        at_least(f"device at {size} against the corrected, dB", psnr(on_device[plain], expected[plain]), 46)
        # No bias is left: each value is the formulas', rounded to float32: 2.1e-3 of a level in the worst of ten draws.
        error = np.abs(on_device - 255 * exactly_adjusted(bgr, d))[plain].max()
        within(f"device at {size} against float64, levels", error, 0.01)


def rounded_colors(faces: np.ndarray, d: Draws) -> np.ndarray:
    """(N, S, S, C) bytes recoloured by OpenCV in 8 bits throughout."""
    return recolor_in_8_bits(faces, host_color.jitter_matrices(d), d.clahe_grid.tolist(), d.clip_limit)


def adjusted(images: np.ndarray, d: Draws, device) -> torch.Tensor:
    """The device's ``color_adjust`` of (N, H, W, 3) bytes -> (N, 3, H, W) floats."""
    amounts = Amounts.unpack(torch.from_numpy(packed_amounts(d)).to(device))
    return color.color_adjust(tensor(images, device), *amounts.color, clahe.groups(d))


def exactly_adjusted(images: np.ndarray, d: Draws) -> np.ndarray:
    """Return (N, H, W, 3) bytes jittered in LAB by the device's formulas in float64, in 0..1, without CLAHE."""
    lab = color.bgr_to_lab(torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255).permute(0, 2, 3, 1)
    jittered_lab = torch.from_numpy(jittered(lab.numpy(), d.lab)).permute(0, 3, 1, 2)
    return levels(color.lab_to_bgr(jittered_lab))


# ---- against formulas and as properties ----------------------------------------------------------------------


def test_lab_follows_the_published_formula(device, within):
    grid = np.arange(0, 256, 5, dtype=np.uint8)
    bgr = np.stack(np.meshgrid(grid, grid, grid), -1).reshape(1, -1, len(grid), 3)
    lab = lab_of(bgr, device)
    within("to LAB, 8-bit units", np.abs(levels(lab) - lab_of_bgr(bgr / 255)).max(), 0.05)  # kornia's white point
    within("and back, levels", np.abs(levels(color.lab_to_bgr(lab)) * 255 - bgr).max(), 0.02)


def test_lab_is_kornias(device, within):
    """The same formulas, and nothing to wait for on a GPU."""
    grid = np.arange(0, 256, 5, dtype=np.uint8)
    bgr = tensor(np.stack(np.meshgrid(grid, grid, grid), -1).reshape(1, -1, len(grid), 3), device)
    theirs = rgb_to_lab(bgr.flip(1))
    ours = color.bgr_to_lab(bgr)
    scale, shift = torch.tensor([[2.55, 1, 1], [0, 128, 128]], device=device)[..., None, None]
    within("to LAB, 8-bit units", float((ours - (theirs * scale + shift)).abs().max()), 1e-3)
    jittered_lab = jittered(ours.permute(0, 2, 3, 1).cpu().numpy(), np.array([[0.2, -0.05, 0.08]])).astype(np.float32)
    lab = torch.from_numpy(jittered_lab).permute(0, 3, 1, 2).to(device)
    back = lab_to_rgb((lab - shift) / scale).flip(1)
    within("from jittered LAB, levels", float((color.lab_to_bgr(lab) - back).abs().max()) * 255, 0.01)


KINDS = ("photograph", "noise", "flat", "few levels", "two levels")


def lightness_of(kind: str, n: int, size: int) -> np.ndarray:
    """(n, size, size) levels."""
    rng = np.random.default_rng(size)
    return np.ascontiguousarray(
        {
            "photograph": lambda: pictures(n, size, 1, seed=size)[..., 0],
            "noise": lambda: rng.integers(0, 256, (n, size, size)),
            "flat": lambda: np.broadcast_to(rng.integers(0, 256, (n, 1, 1)), (n, size, size)),
            "few levels": lambda: rng.integers(0, 6, (n, size, size)),
            "two levels": lambda: 20 + 200 * (rng.random((n, size, size)) < 0.1),
        }[kind]()
    ).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 33, 48, 63, 64, 65, 96, 100, 127, 128, 131, 200, 255, 256, 384, 511, 512])
def test_clahe_is_opencvs(device, within, size):
    """Every grid that any configuration can draw, all in one batch, whether it divides the size or not.

    Of a small size and many tiles whole tiles may lie in the border that OpenCV adds.
    """
    largest = ConstantsColor.from_config(size, ANY_CONFIG).largest_grid
    grids = np.arange(largest + 1)
    for kind in KINDS if size <= 256 else KINDS[:2]:
        lightness = lightness_of(kind, len(grids), size)
        expected = np.stack([host_color.equalize(p, int(g)) if g else p for p, g in zip(lightness, grids)])
        error = np.abs(equalized(lightness, grids, device) - expected)
        within(f"{kind}: levels", error.max(), ties(device))
        within(f"{kind}: share of px that differ", (error > 0).mean(), 1e-4 * ties(device))


@pytest.mark.long
@pytest.mark.parametrize("clip_limit", [1.0, 2.0, 3.3, 4.0, 40.0])
@pytest.mark.parametrize("size", [33, 64, 100, 256])
def test_clahe_is_opencvs_at_any_clip_limit(device, within, size, clip_limit):
    largest = ConstantsColor.from_config(size, ANY_CONFIG).largest_grid
    grids = np.tile(np.arange(1, largest + 1), len(KINDS))
    lightness = np.concatenate([lightness_of(kind, largest, size) for kind in KINDS])
    expected = [cv2.createCLAHE(clip_limit, (int(g), int(g))).apply(p) for p, g in zip(lightness, grids)]
    assert np.array_equal([host_color.equalize(p, int(g), clip_limit) for p, g in zip(lightness, grids)], expected)
    error = np.abs(equalized(lightness, grids, device, clip_limit=clip_limit) - expected)
    within("device: levels", error.max(), ties(device))
    within("device: share of px that differ", (error > 0).mean(), 1e-4 * ties(device))


@pytest.mark.slow
@pytest.mark.parametrize("clip_limit", [1.0, 2.0, 40.0])
def test_a_configured_clip_limit_reaches_every_way_to_recolor(device, within, at_least, clip_limit):
    """OpenCV's batch, the device's, and the single step of either, from the configuration on."""
    config = AugmentationConfig(color_clahe_clip_limit=clip_limit, color_clahe_chance=75.0, warp=False, flip=False)
    size, n = 64, 12
    faces, d = pictures(n, size), draw(4, np.arange(n), 0, size, config)
    d = dataclasses.replace(Draws.identity(n, size), lab=d.lab, clahe_grid=d.clahe_grid, clip_limit=d.clip_limit)
    assert d.clip_limit == d[3:5].clip_limit == clip_limit and 3 < (d.clahe_grid > 0).sum() < n
    expected = corrected_color(faces, d.lab, d.clahe_grid, clip_limit)
    step = ImageAugmentation(n, size, config, d)
    rounded = rounded_colors(faces, d)
    within("8 bits, share of px that differ", (rounded != expected).any(-1).mean(), 1e-3)
    ours = step.color_adjust(faces)
    at_least(f"compiled, clip limit {clip_limit:g}, dB", psnr(ours, expected), 46)
    with OpenCVAugmenter(size, size, [size], threads=1) as augment:
        assert np.array_equal(augment(faces, None, d).targets[0].permute(0, 2, 3, 1), ours)
    whole = DeviceAugmenter(size, size, [size], config)(torch.from_numpy(faces).to(device), None, d)
    at_least(f"device, clip limit {clip_limit:g}, dB", psnr(255 * levels(whole.targets[0]), expected), 46)
    single = step.color_adjust(torch.from_numpy(faces).to(device)).cpu()
    at_least(f"device, step, clip limit {clip_limit:g}, dB", psnr(single, expected), 46)
    other_limit = np.where(clip_limit == 2.0, 4.0, 2.0)
    assert psnr(ours, corrected_color(faces, d.lab, d.clahe_grid, float(other_limit))) < 40, "and it matters"


@pytest.mark.slow
@pytest.mark.parametrize("size, grid", [(32, 2), (33, 10), (50, 3), (64, 4), (64, 9)])
def test_clahe_follows_its_definition(device, within, size, grid):
    """In float64 a tie may round otherwise than in OpenCV's float32."""
    plane = lightness_of("photograph", 1, size)[0]
    error = np.abs(equalized(plane[None], [grid], device)[0] - equalized_slowly(plane, grid, CLIP_LIMIT))
    within("levels", error.max(), 1)
    within("share of px that differ", (error > 0).mean(), 2e-3)


def test_clahe_of_a_face_depends_on_nothing_else(device):
    """Not on the others; and levels are rounded first."""
    lightness, grids = lightness_of("photograph", 5, 64), np.array([4, 0, 2, 3, 6])
    together = equalized(lightness, grids, device)
    for i in range(5):
        assert np.array_equal(together[i], equalized(lightness[i : i + 1], grids[i : i + 1], device)[0])
    shifted = torch.from_numpy(lightness).to(device) + 0.3
    rounded = equalize(shifted, grids).cpu().numpy()
    assert np.array_equal(rounded[grids > 0], together[grids > 0])
    assert torch.equal(equalize(shifted, grids)[1], shifted[1]), "a face without CLAHE keeps its fractions"


@pytest.mark.slow
def test_gradients_pass_through_lab(device):
    generator = torch.Generator(device).manual_seed(1)
    images = torch.rand(1, 3, 2, 2, dtype=torch.float64, device=device, generator=generator, requires_grad=True)
    factor, offset = images.new_tensor([[0.8, 1.0, 0.9]]), images.new_tensor([[20.0, 0.0, 3.0]])

    def there_and_back(images: torch.Tensor) -> torch.Tensor:
        return color.lab_to_bgr(color.jitter(color.bgr_to_lab(images), factor, offset))

    assert torch.autograd.gradcheck(color.bgr_to_lab, images)
    assert torch.autograd.gradcheck(there_and_back, images)


def test_no_amount_changes_no_bit(device):
    faces = pictures(3, 64, 4)
    d = Draws.identity(3, 64)
    assert host_color.recolor(faces, host_color.jitter_matrices(d), [0, 0, 0], Scratch()) is faces
    batch = tensor(faces[..., :3], device)
    assert torch.equal(adjusted(faces[..., :3], d, device), batch)


def test_a_face_without_amounts_keeps_its_bits_among_others(device):
    faces = pictures(3, 64, 4)
    grids = [0, 0, 4]
    lab = np.array([[0.2, 0, 0], [0, 0, 0], [0, 0, 0]])
    d = dataclasses.replace(Draws.identity(3, 64), lab=lab, clahe_grid=np.array(grids))
    ours = host_color.recolor(faces, host_color.jitter_matrices(d), grids, Scratch())
    assert [np.array_equal(a, b) for a, b in zip(ours, faces)] == [False, True, False]
    assert np.array_equal(ours[..., 3], faces[..., 3]), "the mask is no colour"
    batch, result = tensor(faces[..., :3], device), adjusted(faces[..., :3], d, device)
    assert [torch.equal(a, b) for a, b in zip(result, batch)] == [False, True, False]


def test_amounts_reach_black_and_white(device):
    """All the way up in L is white, all the way down black, whatever the colour was."""
    faces = pictures(2, 32)
    gray = np.repeat(faces[..., :1], 3, axis=-1)
    d = dataclasses.replace(Draws.identity(2, 32), lab=np.array([[1.0, 0, 0], [-1.0, 0, 0]]))
    ours = ImageAugmentation(2, 32, draws=d).color_adjust(gray)
    assert ours[0].min() >= 254 and ours[1].max() <= 1
    result = adjusted(gray, d, device)
    assert result[0].min() > 0.99 and result[1].max() < 0.01


def test_inputs_are_left_alone_and_single_faces_come_out_as_in_a_batch(device):
    faces = pictures(4, 64)
    d = draw(5, np.arange(4), 0, 64)
    original = faces.copy()
    together = ImageAugmentation(4, 64, draws=d).color_adjust(faces)
    on_device = ImageAugmentation(4, 64, draws=d).color_adjust(torch.from_numpy(faces).to(device))
    assert np.array_equal(faces, original)
    assert on_device.dtype == torch.uint8 and on_device.shape == faces.shape
    for i in range(4):
        alone = ImageAugmentation(1, 64, draws=d[i : i + 1])
        assert np.array_equal(alone.color_adjust(faces[i : i + 1])[0], together[i])
        assert torch.equal(alone.color_adjust(torch.from_numpy(faces[i : i + 1]).to(device))[0], on_device[i])
