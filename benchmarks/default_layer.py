"""Which layer should be explained if none is named? Hottest pixel and heat on what tells two classes apart.

A stock ResNet-18 of torchvision is trained on images of noise with a square in them, red for one class and blue for the
other, anywhere but at the border. The heatmap of each stage is compared with the square:

- hit: the share of images whose hottest pixel lies on the square;
- heat: the mean share of the heat that lies on it (the square covers a sixteenth of the image).

The late stages have few positions where images are small: 1 x 1 and 2 x 2 at 32 pixels.
"""

import torch
import torch.nn.functional as F
from setting import parser, save, table
from torch import Tensor, nn
from torchvision.models import resnet18

from cam_callbacks import GradCAM, ScoreCAM
from cam_callbacks.explain.method import Method

LAYERS = ("layer1", "layer2", "layer3", "layer4")
METHODS: dict[str, Method] = {
    "Score-CAM": ScoreCAM("probability", tolerance=0.02, batch_size=64),
    "Grad-CAM": GradCAM(),
}


def main() -> None:
    """Train, explain each stage, print the table, write JSON."""
    options = parser(__doc__ or "")
    options.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 224])
    options.add_argument("--images", type=int, default=16)
    options.add_argument("--seeds", type=int, default=3)
    args = options.parse_args()
    if args.short:
        args.sizes, args.images, args.seeds = [32], 4, 1
    rows = []
    for size in args.sizes:
        found: dict[tuple[str, str], list[tuple[tuple[int, ...], float, float]]] = {}
        chosen, accuracy = set(), []
        for seed in range(args.seeds):
            network, right = trained(size, seed, 1 if args.short else 10, args.device)
            accuracy.append(right)
            images, labels, squares = scenes(args.images, size, seed=1000 + seed, device=args.device)
            chosen.add(GradCAM().check(network, images))
            for layer in LAYERS if size > 32 else LAYERS[:-1]:  # 1 x 1 at 32 pixels
                for name, method in METHODS.items():
                    found.setdefault((layer, name), []).append(score(method, network, images, labels, squares, layer))
        for (layer, name), scores in found.items():
            positions = " x ".join(map(str, scores[0][0]))
            hit, heat = (sum(each[part] for each in scores) / len(scores) for part in (1, 2))
            right = sum(accuracy) / len(accuracy)
            mark = "chosen" if layer in chosen else ""
            rows.append((size, f"{right:.0%}", layer, positions, name, f"{hit:.0%}", f"{heat:.2f}", mark))
            print(rows[-1], flush=True)
        print(f"chosen at {size} pixels: {', '.join(map(str, chosen))}", flush=True)
    header = ("pixels", "accuracy", "layer", "positions", "method", "hit", "heat", "default")
    print(f"\nResNet-18, {args.images} images, {args.seeds} trainings each\n\n" + table(header, rows))
    save("default_layer", rows)


def scenes(count: int, size: int, seed: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 3, size, size), labels (N,), and where the squares are (N, size, size) bool."""
    chance = torch.Generator().manual_seed(seed)
    side = size // 4
    images = torch.rand(count, 3, size, size, generator=chance) * 0.3
    labels = torch.arange(count) % 2
    corners = torch.randint(size // 8, size - size // 8 - side + 1, (count, 2), generator=chance)
    squares = torch.zeros(count, size, size, dtype=torch.bool)
    for image, label, (y, x), square in zip(images, labels, corners.tolist(), squares, strict=True):
        image[2 * int(label), y : y + side, x : x + side] += 0.7
        square[y : y + side, x : x + side] = True
    return ((images - 0.2) / 0.2).to(device), labels.to(device), squares.to(device)


def trained(size: int, seed: int, epochs: int, device: str) -> tuple[nn.Module, float]:
    """A ResNet-18 after a short training, in eval mode, and its accuracy on images that it has not seen."""
    torch.manual_seed(seed)
    network = resnet18(num_classes=2).to(device)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    images, labels, _ = scenes(192, size, seed, device)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(16):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        images, labels, _ = scenes(64, size, seed + 500, device)
        return network, float((network(images).argmax(1) == labels).float().mean())


def score(
    method: Method, network: nn.Module, images: Tensor, labels: Tensor, squares: Tensor, layer: str
) -> tuple[tuple[int, ...], float, float]:
    """The positions of a layer, the share of images whose hottest pixel is on the square, the share of heat on it."""
    explanation = method(network, images, layer, labels)
    heat = explanation.heatmaps.flatten(1)
    on_square = squares.flatten(1)
    hit = on_square.gather(1, heat.argmax(1, keepdim=True)) & (heat.amax(1, keepdim=True) > 0)
    share = (heat * on_square).sum(1) / heat.sum(1).clamp_min(1e-9)
    return tuple(explanation.layer_maps.shape[1:]), float(hit.float().mean()), float(share.mean())


if __name__ == "__main__":
    main()
