"""Each side's own statistics of what the encoder makes, so that both people get the same codes.

An encoder that sees two people makes codes by which they can be told apart, and at a swap a decoder is shown codes that
it never saw. Where each layer's features are normalised by the statistics of the side that they come from, the two
sides' codes have the same mean and deviation (domain-specific batch normalisation: Chang et al., CVPR 2019). Statistics
over both sides together do harm instead.

Where the sides look another way in the mean, the same code at the mean is a fault: a swap looks where its person looks
on average, and turns further than A where its person does. So features have the same mean and deviation at the same
poses: what they move with the faces' covariates, by a regression within the sides, is put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from swapfast.batch import SIDES

PLAIN = "plain"
CodeKind = Literal["encoder", "bottleneck", "plain"]
EPSILON = 1e-5
MOMENTUM = 0.02  # of the running moments, a step of the weights: a memory of about 50 steps
LEAST_VARIANCE = 0.05  # of a side's features, where those of both sides' poses have 1
LEAST_UNCOLORED = 0.5  # faces of a side, below which nothing is known of them; averages may have a share of one
SMALLEST_BATCH = 4  # faces a side: fewer have no statistics worth the name
COVARIATES = 3  # of a face, see pipelines/pose_covariates.py


class Covariates(NamedTuple):
    """Covariates of consecutive faces of a batch, (n, COVARIATES); mean and number of all processes' faces."""

    values: Tensor
    mean: Tensor
    number: Tensor


def with_mean(values: Tensor, of_all_processes: bool = True) -> Covariates:
    """Return the covariates (n, COVARIATES) of this process' faces of a side with the mean over all processes'."""
    sums = (values.sum(0, dtype=torch.float64), _number_of_values(values, values[0].double()))
    total, number = _sum_over_processes(*sums, of_all=of_all_processes)
    return Covariates(values, (total / number).float(), number[0].float())


class Rows(NamedTuple):
    """Consecutive faces of a batch that show one side and become another, or the same: 'a' or 'b'.

    are_swaps: a decoder made them, so they count in no running statistics. covariates: of the faces themselves, also of
    those that their swaps were made of; None where poses are not compared.
    """

    faces: int
    shown: str
    wanted: str
    are_swaps: bool = False
    covariates: Covariates | None = None


class SideStatistics(nn.Module):
    """Normalises features by the running mean and deviation of the side that they come from; has no parameters.

    In training a batch's own statistics are used, over the faces of all processes unless ``is_of_all_processes`` is
    False, and gradients go through them.

    channels    of the features (N, C, H, W), or (N, C) where ``is_flat``
    normalises  False: features stay as they are in training. Afterwards those of one side that are to become the
                other's are moved by the difference of the two means at the same poses, unless ``exchanges`` is False
    moments     (sides, 2, C): running means of the values and of their squares
    steps       (sides,): how often they were moved
    sums        (sides, 2, C), values (sides,): of the batches since then
    side_means        (sides, COVARIATES): the mean covariates of each side's faces; 0 where poses are not compared
    side_covariances  (sides, COVARIATES, COVARIATES): how much more they vary in a side than in both; 0 likewise
    slopes            (COVARIATES, C): running, by how much features of a face, normalised ones where they are
                      normalised, move with its covariates
    products          (COVARIATES, C): of deviations of both since the last step, over ``freedom`` () faces
    is_code           whether the features are the code itself, which alone is moved by ``uncolored_sums``
    uncolored_sums    (sides, C): of a finished model's features of faces that are not augmented, in the directions in
                      which colours move them, over ``uncolored_faces`` (sides,) faces. Dark skin mostly gets lighter by
                      augmentation and pale skin darker, so a face as it is does not lie where its side's features do
                      on average: a swap is moved from where A's lie to where B's do. Where nothing is normalised the
                      moments tell that, but for models of earlier versions
    """

    moments: Tensor
    steps: Tensor
    sums: Tensor
    values: Tensor
    side_means: Tensor
    side_covariances: Tensor
    slopes: Tensor
    products: Tensor
    freedom: Tensor
    uncolored_sums: Tensor
    uncolored_faces: Tensor

    def __init__(self, channels: int, normalises: bool, is_flat: bool = False, is_code: bool = True) -> None:
        super().__init__()
        self.is_flat = is_flat
        self.normalises = normalises
        self.is_code = is_code
        self.exchanges = True
        self.is_of_all_processes = True
        self.register_buffer("moments", torch.empty(len(SIDES), 2, channels))
        self.register_buffer("steps", torch.empty(len(SIDES)))
        self.register_buffer("sums", torch.empty(len(SIDES), 2, channels))
        self.register_buffer("values", torch.empty(len(SIDES)))
        self.register_buffer("side_means", torch.empty(len(SIDES), COVARIATES))
        self.register_buffer("side_covariances", torch.empty(len(SIDES), COVARIATES, COVARIATES))
        self.register_buffer("slopes", torch.empty(COVARIATES, channels))
        self.register_buffer("products", torch.empty(COVARIATES, channels))
        self.register_buffer("freedom", torch.empty(()))
        self.register_buffer("uncolored_sums", torch.empty(len(SIDES), channels))
        self.register_buffer("uncolored_faces", torch.empty(len(SIDES)))
        self.begin()
        self.register_load_state_dict_pre_hook(_keep_missing)

    def begin(self) -> None:
        """Put the buffers where they begin, also after ``to_empty``: nothing was seen, and poses are not compared."""
        self.side_means.zero_()
        self.side_covariances.zero_()
        self.forget_features()

    def forget_features(self) -> None:
        """Forget all features that were seen; where the sides look stays."""
        self.moments[:, 0].zero_()
        self.moments[:, 1].fill_(1)
        for buffer in (self.steps, self.sums, self.values, self.slopes, self.products, self.freedom):
            buffer.zero_()
        self.forget_uncolored()

    def forget_uncolored(self) -> None:
        """Forget where faces in their own colours lie: nobody tells any more, and weights move on."""
        self.uncolored_sums.zero_()
        self.uncolored_faces.zero_()

    def forward(self, features: Tensor, rows: Sequence[Rows]) -> Tensor:
        """Return the features as the next layer is to have them. rows: what the faces are, in their order."""
        if self.training and not self.normalises:
            for part, values in zip(rows, features.detach().split([part.faces for part in rows]), strict=True):
                if not part.are_swaps:
                    self._add(part.shown, *_sums(values, self.is_of_all_processes))
                    if part.covariates is not None:
                        self._add_products(values, part.covariates)
            return features
        if len(rows) == 1:
            return self._moved(features, rows[0])
        parts = features.split([part.faces for part in rows])
        return torch.cat([self._moved(values, part) for part, values in zip(rows, parts, strict=True)])

    @property
    def is_known(self) -> bool:
        """Return whether faces of both sides have been seen."""
        return bool((self.steps > 0).all())

    def scale_and_offset(self, shown: str, wanted: str) -> tuple[Tensor, Tensor]:
        """Return what a finished model multiplies features by and adds to them, (C,) float32 each.

        shown, wanted: the side that the faces show, and the one that they become.
        """
        source, target = SIDES.index(shown), SIDES.index(wanted)
        mean, square = self.moments[source].float()
        if self.normalises:
            scale = self._deviation(shown) * torch.rsqrt((square - mean * mean).clamp_min(0) + EPSILON)
            offset = _times(self.side_means[source].float(), self.slopes.float()) - mean * scale
            of_colors, is_known = self._between_uncolored(source, target)
            return scale, offset + of_colors * is_known * (self.exchanges and self.is_code)
        has_both = (self.steps[source] > 0) & (self.steps[target] > 0)
        of_poses = _times((self.side_means[target] - self.side_means[source]).float(), self.slopes.float())
        difference = self.moments[target, 0].float() - mean - of_poses
        of_colors, is_known = self._between_uncolored(source, target)
        return torch.ones_like(mean), torch.where(is_known, of_colors, difference * has_both) * self.exchanges

    def _between_uncolored(self, source: int, target: int) -> tuple[Tensor, Tensor]:
        """Return the way from one side's faces in their own colours to those of the other, (C,), and if it is known."""
        means = self.uncolored_sums.float() / self.uncolored_faces.float().clamp_min(LEAST_UNCOLORED)[:, None]
        return means[target] - means[source], (self.uncolored_faces >= LEAST_UNCOLORED).all()

    @torch.no_grad()
    def update(self) -> None:
        """Move the running moments by what was seen since the last time.

        The first steps are averaged alike, so that nothing is left of where the moments began.
        """
        self._update_slopes()
        means = self.sums / self.values.clamp_min(1)[:, None, None]
        is_seen = self.values > 0
        share = (1 / (self.steps + 1)).clamp_min(MOMENTUM) * is_seen
        self.moments.lerp_(means, share[:, None, None])
        self.steps.add_(is_seen)
        self.sums.zero_()
        self.values.zero_()

    def _update_slopes(self) -> None:
        """Move the running slopes; before the steps are counted."""
        share = (1 / (self.steps.max() + 1)).clamp_min(MOMENTUM) * (self.freedom > 0)
        self.slopes.lerp_(self.take_slopes(), share)

    def take_slopes(self) -> Tensor:
        """Return by how much features moved with covariates since the last time, (COVARIATES, C), and forget it."""
        slopes = self.products / self.freedom.clamp_min(1)
        self.products.zero_()
        self.freedom.zero_()
        return slopes

    def of_a_swap(self) -> dict[str, Tensor]:
        """Return the buffers by name that a finished model needs."""
        of_poses = ("side_means", "side_covariances", "slopes")
        names = ("moments", "steps", *of_poses, "uncolored_sums", "uncolored_faces")
        return {name: getattr(self, name) for name in names}

    def _deviation(self, side: str) -> Tensor:
        """Return what the deviation of a side's features is to be, (C,): 1 would be that of faces of both sides' poses.

        Features that follow the yaw differ less where faces are turned less.
        """
        slopes, apart = self.slopes.float(), self.side_covariances[SIDES.index(side)].float()
        explained = (slopes[:, None] * slopes[None] * apart[:, :, None]).sum((0, 1))
        return (1 + explained).clamp_min(LEAST_VARIANCE).sqrt()

    def _moved(self, features: Tensor, rows: Rows) -> Tensor:
        if self.training:
            return self._normalised(features, rows)
        scale, offset = self.scale_and_offset(rows.shown, rows.wanted)
        shape = (1, -1) + (1,) * (features.dim() - 2)
        return torch.addcmul(offset.view(shape), features.float(), scale.view(shape)).to(features.dtype)

    def _normalised(self, features: Tensor, rows: Rows) -> Tensor:
        """Return the features normalised by their own statistics, which are added to the side's sums."""
        result, sums, number = normalised(features, self.is_of_all_processes)
        if not rows.are_swaps:
            self._add(rows.shown, sums, number)
        if rows.covariates is None:
            return result
        shape = (1, -1) + (1,) * (result.dim() - 2)
        # A swap has the poses of the face that it was made of.
        deviation = self._deviation(rows.wanted if rows.are_swaps else rows.shown)
        offset = _times(rows.covariates.mean, self.slopes)
        result = result * deviation.view(shape).to(result.dtype)
        if not rows.are_swaps:
            self._add_products(result, rows.covariates)
        return result + offset.view(shape).to(result.dtype)

    @torch.no_grad()
    def put_uncolored(self, side: str, mean: Tensor, covariates: Tensor, faces: int, directions: Tensor) -> None:
        """Take a side's mean features of faces that are not augmented in place of what was known, if it is finite.

        mean: (C,) in evaluation, of ``faces`` faces; covariates: (COVARIATES,), the mean of theirs. directions: (k, C)
        float64, orthonormal: nothing else counts. Where nothing is normalised the running mean of the features, which
        is of augmented faces, takes it over in these directions.
        """
        index = SIDES.index(side)
        at_usual_pose = mean.double() - _times(covariates.double(), self.slopes.double())
        if not self.normalises:
            known = self.moments[index, 0].double()
            of_poses = _times(self.side_means[index].double(), self.slopes.double())
            apart = directions.T @ (directions @ (at_usual_pose + of_poses - known))
            is_usable = apart.isfinite().all()
            self.moments[index, 0].copy_(torch.where(is_usable, known + apart, known))
            return
        sums = faces * (directions.T @ (directions @ at_usual_pose))
        is_usable = sums.isfinite().all()
        self.uncolored_sums[index].copy_(torch.where(is_usable, sums, self.uncolored_sums[index].double()))
        self.uncolored_faces[index].copy_(torch.where(is_usable, float(faces), self.uncolored_faces[index]))

    @torch.no_grad()
    def _add_products(self, features: Tensor, covariates: Covariates) -> None:
        """Add what tells how features (n, C, ...) move with covariates, in all processes' faces.

        They count as one face less, since the mean is taken off.
        """
        by_face = of_faces(features)
        deviations = covariates.values - covariates.mean
        sums = (deviations[:, :, None] * by_face[:, None]).sum(0)
        (products,) = _sum_over_processes(sums, of_all=self.is_of_all_processes)
        is_usable = products.isfinite().all()
        self.products.add_(torch.where(is_usable, products, torch.zeros_like(products)))
        self.freedom.add_(is_usable * (covariates.number - 1))

    @torch.no_grad()
    def _add(self, side: str, sums: Tensor, count: Tensor) -> None:
        """Add sums over ``count`` values, unless one of them is not finite: such a step moves no weights either."""
        is_usable = sums.isfinite().all()
        index = SIDES.index(side)
        self.sums[index].add_(torch.where(is_usable, sums, torch.zeros_like(sums)))
        self.values[index].add_(is_usable * count)


def code_layers(module: nn.Module, path: str) -> tuple[dict[str, int], bool]:
    """Return the layers of an encoder whose features both people share: path -> channels.

    They are its convolutions with their activations, and the first dense layer, which ends them. path: of ``module``.
    Returns also whether there is such a dense layer.
    """
    layers: dict[str, int] = {}
    for name, child in module.named_children():
        child_path = f"{path}.{name}"
        convolutions = [layer for layer in child.children() if isinstance(layer, nn.Conv2d)]
        if isinstance(child, nn.Linear):
            return {**layers, child_path: child.out_features}, True
        if convolutions:
            layers[child_path] = convolutions[-1].out_channels
            continue
        inner, ends = code_layers(child, child_path)
        layers |= inner
        if ends:
            return layers, True
    return layers, False


def _keep_missing(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let models that were saved without statistics, or without some, keep those that they begin with."""
    for name, buffer in layer.named_buffers():
        state.setdefault(prefix + name, buffer)


def of_faces(features: Tensor) -> Tensor:
    """Return features (n, C, ...) as one of each channel of each face, (n, C) float32."""
    return features.float().flatten(2).mean(2) if features.dim() > 2 else features.float()


def _times(covariates: Tensor, slopes: Tensor) -> Tensor:
    """Return what features move by, (C,); autocast would round a product of matrices to half precision."""
    return (covariates[:, None] * slopes).sum(0)


def _processes() -> int:
    processes = torch.distributed
    return processes.get_world_size() if processes.is_available() and processes.is_initialized() else 1


def _dims(features: Tensor) -> list[int]:
    """Return the dimensions of (N, C, ...) over which a channel has statistics."""
    return [0, *range(2, features.dim())]


def _sum_over_processes(*sums: Tensor, of_all: bool = True) -> list[Tensor]:
    """Return sums (C,) float64 over all processes, in one exchange, or as they are unless ``of_all``."""
    total = torch.stack(sums)
    if of_all and _processes() > 1:
        torch.distributed.all_reduce(total)
    return list(total)


def _number_of_values(features: Tensor, like: Tensor) -> Tensor:
    return torch.full_like(like, features.numel() // features.shape[1])


@torch.no_grad()
def _sums(features: Tensor, of_all: bool) -> tuple[Tensor, Tensor]:
    """Return the sums of a layer's values and of their squares, (2, C), and the number of values, of all processes."""
    dims, wide = _dims(features), features.double()
    sums = wide.sum(dims)
    of_values = (sums, wide.square().sum(dims), _number_of_values(features, sums))
    sums, squares, number = _sum_over_processes(*of_values, of_all=of_all)
    return torch.stack([sums, squares]).float(), number[0].float()


def normalised(features: Tensor, of_all_processes: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (N, C, ...) normalised by their own statistics over all processes' faces, or this process'.

    Also the sums of values and squares, (2, C) float32, and the number of values.
    """
    return _Normalised.apply(features, of_all_processes)


class _Normalised(torch.autograd.Function):
    """See ``normalised``. Each sum is taken in double precision.

    Where values lie close together, the gradient is a small difference of large sums. On a CPU torch's own batch
    normalisation adds channels_last pictures up in single precision, and gradients were off by 2e-3.
    """

    @staticmethod
    def forward(context: Any, features: Tensor, of_all: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        dims, shape = _dims(features), (1, -1) + (1,) * (features.dim() - 2)
        sums = features.sum(dims, dtype=torch.float64)
        sums, number = _sum_over_processes(sums, _number_of_values(features, sums), of_all=of_all)
        mean = sums / number
        differences = features.float() - mean.float().view(shape)
        squares = differences.square().sum(dims, dtype=torch.float64)
        (deviations,) = _sum_over_processes(squares, of_all=of_all)
        variance = deviations / number
        scale = torch.rsqrt(variance + EPSILON).float().view(shape)
        result = (differences * scale).to(features.dtype)
        context.save_for_backward(result, scale, number)
        context.of_all = of_all
        statistics = (torch.stack([mean, variance + mean * mean]) * number).float()
        return result, statistics, number[0].float()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """See the class: the gradient of all processes' losses."""
        result, scale, number = context.saved_tensors
        gradient, dims, shape = gradients[0].float(), _dims(result), scale.shape
        sums = gradient.sum(dims, dtype=torch.float64)
        products = (gradient * result).sum(dims, dtype=torch.float64)
        sums, products = _sum_over_processes(sums, products, of_all=context.of_all)
        mean, slope = ((total / number).float().view(shape) for total in (sums, products))
        return (scale * (gradient - mean - result.float() * slope)).to(result.dtype), None
